r"""Write classes and objects of an image as COCO panoptic segments: a label image and a table.

Every object of a class of things is a segment with the number it has in objects.csv; every class
of stuff is one segment, numbered after the objects. An object of no class is in the category
``object``, which comes after those of the model. Where an object and stuff meet, the object wins.

Example
-------
    python panoptic.py --store results/a/a.ome.zarr --objects results/a/objects.csv \
        --output panoptic.json --labels panoptic.zarr
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from iaunet import __version__, classes, cli, grid, labelfiles, omezarr, relabelling, tables
from iaunet.labels import Extents, extents

UNKNOWN = "object"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--store", type=Path, required=True, help="OME-Zarr of stitch.py")
    parser.add_argument("--objects", type=Path, required=True, help="objects.csv of measure.py")
    parser.add_argument("--output", type=Path, required=True, help="JSON of segments to write")
    parser.add_argument(
        "--labels", type=Path, required=True, help="OME-Zarr of the segments' numbers to write"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the label image and the table."""
    args = parse_args(argv)
    recorder = cli.Recorder("panoptic", args)
    known = labelfiles.classes(args.store)
    objects = tables.read_text(args.objects, required=("label",))
    n_objects = max(map(int, objects["label"]), default=0)
    stuff = {k: n_objects + k for k, one in enumerate(known, start=1) if not one.thing}
    with cli.write_whole(args.labels) as partial:
        found = write_segments(partial, args.store, stuff)
    segments = [*of_things(objects, known), *of_stuff(stuff, found)]
    annotation = {
        "image_id": args.store.name.removesuffix(".ome.zarr"),
        "file_name": args.labels.name,
        "segments_info": segments,
    }
    categories = [
        {"id": k, "name": one.name, "isthing": int(one.thing)}
        for k, one in enumerate([*known, classes.Class(UNKNOWN, True)], start=1)
    ]
    with cli.write_whole(args.output) as partial:
        text = json.dumps({"annotations": [annotation], "categories": categories}, indent=1)
        partial.write_text(text + "\n")
    recorder.write(n_segments=len(segments))


def write_segments(path: Path, store: Path, stuff: dict[int, int]) -> list[Extents]:
    """Write the number of every voxel's segment; return the extents of stuff, block by block."""
    instances = omezarr.open_labels(store)
    meta = omezarr.read_meta(store)
    semantic = omezarr.open_labels(store, omezarr.SEMANTIC) if stuff else None
    largest = max(stuff.values(), default=0)
    dtype = np.promote_types(instances.dtype, relabelling.label_dtype(largest))
    number = np.zeros(classes.MOST + 2, dtype=dtype)
    number[list(stuff)] = list(stuff.values())
    array = omezarr.create_labels(
        path, meta.shape, meta.axes, dtype, meta.pixel_um, {"version": __version__}
    )
    found = []
    for box in omezarr.shard_boxes(array):
        segment = instances[box].astype(dtype)
        if semantic is not None:
            behind = np.where(segment > 0, dtype.type(0), number[semantic[box]])
            found.append(extents(behind, grid.origin(box)))
            segment = segment + behind
        array[box] = segment
    omezarr.write_label_pyramid(path, None)
    return found


def of_things(objects: tables.Table, known: Sequence[classes.Class]) -> Iterator[dict]:
    """Yield the segment of every object."""
    numbers = {one.name: k for k, one in enumerate(known, start=1)}
    axes = [axis for axis in "xyz" if f"bbox_{axis}_min" in objects]
    size = "area_px" if "area_px" in objects else "volume_px"
    for row in objects.to_dict("records"):
        low, high = ([int(row[f"bbox_{a}_{end}"]) for a in axes] for end in ("min", "max"))
        sides = [b - a for a, b in zip(low, high, strict=True)]
        category = numbers.get(row.get("class"), len(known) + 1)
        yield segment(int(row["label"]), category, int(row[size]), [*low, *sides])


def of_stuff(stuff: dict[int, int], found: Sequence[Extents]) -> Iterator[dict]:
    """Yield the segment of every class of stuff that occurs."""
    for category, number in stuff.items():
        rows = [(one, np.searchsorted(one.ids, number)) for one in found if number in one.ids]
        if not rows:
            continue
        area = sum(int(one.areas[k]) for one, k in rows)
        low = np.min([one.starts[k] for one, k in rows], axis=0)[::-1]
        high = np.max([one.stops[k] for one, k in rows], axis=0)[::-1]
        yield segment(number, category, area, [*low.tolist(), *(high - low).tolist()])


def segment(number: int, category: int, area: int, box: list[int]) -> dict[str, object]:
    """Return one segment; its box is x, y, (z,) and the sides along them, in voxels."""
    return {"id": number, "category_id": category, "area": area, "bbox": box, "iscrowd": 0}


if __name__ == "__main__":
    cli.run(main)
