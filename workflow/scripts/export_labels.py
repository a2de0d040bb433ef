r"""Write the objects of one image for another program: QuPath, ImageJ and Fiji, scanpy.

geojson    QuPath: outlines, class and measurements of every object; 2D
rois       ImageJ: a set of regions for the ROI Manager; in 3D one region per object and section
tiff       ImageJ, Fiji: label image, 16 bit, or 32-bit float above 65,535 objects
ome-tiff   Fiji, QuPath and others with Bio-Formats: label image, tiled, compressed, 32 bit
anndata    scanpy, squidpy, SpatialData: the table of objects with its places

Outlines are exact: their vertices are corners of pixels, and filled they give the labels back.

Example:
    python export_labels.py --to geojson --store cells.ome.zarr --objects objects.parquet \
        --output cells.geojson
"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from iaunet import __version__, cli, features, grid, omezarr, rings, tables, tiff
from iaunet.errors import InputError

log = logging.getLogger("export_labels")

FORMATS = ("geojson", "rois", "tiff", "ome-tiff", "anndata")
OUTLINED = ("geojson", "rois")
BLOCK_PX = {2: (2048, 2048), 3: (64, 512, 512)}
LARGEST_FLOAT = 1 << 24
"""Up to here float32 holds every whole number."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--to", choices=FORMATS, required=True, help="format to write")
    parser.add_argument("--store", type=Path, required=True, help="OME-Zarr of stitch.py")
    parser.add_argument("--objects", type=Path, required=True, help="objects.parquet of measure.py")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write one file."""
    args = parse_args(argv)
    recorder = cli.Recorder("export_labels", args)
    meta, labels = omezarr.read_meta(args.store), omezarr.open_labels(args.store)
    if args.to == "geojson" and labels.ndim == 3:
        raise InputError(
            f"{args.store}: a 3D image of {tuple(labels.shape)} px; geojson holds outlines in a "
            "plane only, and QuPath no 3D objects; use rois, tiff, ome-tiff or anndata"
        )
    objects = read_objects(args.objects, meta)
    with cli.write_whole(args.output) as partial:
        write(args, partial, objects, labels, meta)
    log.info("%s: %d objects", args.output, len(objects))
    recorder.write(n_objects=len(objects))


def write(
    args: argparse.Namespace,
    path: Path,
    objects: tables.Table,
    labels,
    meta: omezarr.Meta,
) -> None:
    """Write the format that was asked for."""
    if args.to in OUTLINED:
        outlined = outlines(args, objects, labels)
        if args.to == "rois":
            from iaunet import rois

            rois.write(path, regions(outlined, objects, labels.ndim))
        else:
            from iaunet import geojson

            geojson.write(path, qupath_features(outlined, objects))
    elif args.to == "anndata":
        from iaunet import h5ad

        facts = {"version": __version__, "shape": np.array(meta.shape)}
        h5ad.write(path, h5ad.annotated(objects, meta.axes, meta.pixel_um, facts))
    else:
        write_tiff(args, path, objects, labels, meta)


def read_objects(path: Path, meta: omezarr.Meta) -> tables.Table:
    """Return the table of objects of an image with these axes, by ascending label."""
    size = "area_px" if len(meta.axes) == 2 else "volume_px"
    boxes = [f"bbox_{axis}_{end}" for axis in meta.axes for end in ("min", "max")]
    objects = tables.read_parquet(path)
    absent = [name for name in ("image", "label", size, *boxes) if name not in objects]
    if absent:
        raise InputError(
            f"{path}: no column '{absent[0]}', which the objects of a {len(meta.axes)}D image "
            "have; give the objects.parquet that measure.py wrote for this store"
        )
    return objects.sort_values("label", ignore_index=True)


def outlines(
    args: argparse.Namespace, objects: tables.Table, labels
) -> Iterator[tuple[int, int | None, list[rings.Polygon]]]:
    """Yield row of the table, section (None in 2D) and polygons of every object.

    The labels are walked in blocks; memory holds one, or the box of the largest object.

    Raises
    ------
    InputError
        An object is not in its box, or not as large as the table says.
    """
    axes = "zyx"[-labels.ndim :]
    starts, stops = (
        objects[[f"bbox_{axis}_{end}" for axis in axes]].to_numpy(np.int64)
        for end in ("min", "max")
    )
    names = objects["label"].to_numpy()
    sizes = objects["area_px" if labels.ndim == 2 else "volume_px"].to_numpy()
    inside = (starts >= 0).all() and (starts < stops).all() and (stops <= labels.shape).all()
    if not inside:
        raise InputError(f"{args.objects}: a box lies outside {args.store}, {labels.shape} px")
    for window, members in features.windows(starts, stops, BLOCK_PX[labels.ndim]):
        values, origin = labels[window], grid.origin(window)
        for row in members.tolist():
            box = tuple(map(slice, starts[row] - origin, stops[row] - origin))
            mask = grid.volume(values[box] == names[row])
            if int(mask.sum()) != sizes[row]:
                raise InputError(
                    f"{args.objects}: object {names[row]} has {sizes[row]} px, {args.store} has "
                    f"{int(mask.sum())} there; give the table and the store of one run"
                )
            for depth in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
                section = None if labels.ndim == 2 else int(starts[row, 0]) + depth
                corner = starts[row, :-3:-1].astype(np.int32)  # x, y
                found = rings.polygons(mask[depth])
                yield row, section, [[ring + corner for ring in polygon] for polygon in found]


def qupath_features(
    outlined: Iterator[tuple[int, int | None, list[rings.Polygon]]], objects: tables.Table
) -> Iterator[dict[str, object]]:
    """Yield every object as QuPath has it; measurements are the numbers of the table."""
    from iaunet import geojson

    numbers = objects.select_dtypes(["number", "bool"]).astype(np.float64)
    names, values = list(numbers.columns), numbers.to_numpy()
    kinds = objects["class"].tolist() if "class" in objects else [""] * len(objects)
    known = sorted(set(kinds) - {""})
    for row, _, polygons in outlined:
        kind = kinds[row]
        number = known.index(kind) if kind else 0
        yield geojson.feature(
            str(objects["image"].iat[row]),
            int(objects["label"].iat[row]),
            polygons,
            dict(zip(names, values[row].tolist(), strict=True)),
            kind,
            geojson.COLOURS[number % len(geojson.COLOURS)],
        )


def regions(
    outlined: Iterator[tuple[int, int | None, list[rings.Polygon]]],
    objects: tables.Table,
    ndim: int,
) -> Iterator[tuple[str, bytes]]:
    """Yield name and region of every object; names sort as the labels do."""
    from iaunet import rois

    digits = len(str(objects["label"].max())) if len(objects) else 1
    for row, section, polygons in outlined:
        name = f"{objects['label'].iat[row]:0{digits}d}"
        name = name if ndim == 2 else f"{name}-z{section + 1:04d}"
        yield name, rois.region(name, polygons, section)


def write_tiff(
    args: argparse.Namespace, path: Path, objects: tables.Table, labels, meta: omezarr.Meta
) -> None:
    """Write the label image."""
    largest = int(objects["label"].max()) if len(objects) else 0
    if args.to == "ome-tiff":
        if labels.dtype.itemsize > 4:
            raise InputError(
                f"{args.store}: labels are {labels.dtype}; OME-TIFF holds 32 bits, use the OME-Zarr"
            )
        tiff.write_labels(path, labels, meta.pixel_um, ome=True)
        return
    if largest > LARGEST_FLOAT:
        raise InputError(
            f"{args.store}: labels up to {largest}; ImageJ holds {LARGEST_FLOAT} at most, use "
            "ome-tiff"
        )
    dtype = np.uint16 if largest <= np.iinfo(np.uint16).max else np.float32
    boxes = omezarr.shard_boxes(labels)
    tiff.write_imagej_labels(path, labels, dtype, meta.pixel_um, boxes)


if __name__ == "__main__":
    cli.run(main)
