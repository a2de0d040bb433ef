r"""Count, place, size and brightness of every object of one image and, with a reference, accuracy.

Example
-------
    python measure.py --store cells.ome.zarr --tiles tiles.json \
        --identities identities.parquet --seams seams.csv --records steps/*.json \
        --output-csv objects.csv --output-parquet objects.parquet \
        --metrics metrics.json --provenance provenance.json
"""

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet import (
    __version__,
    checksums,
    classes,
    cli,
    features,
    identity,
    labelfiles,
    metrics,
    omezarr,
    quality,
    quarantine,
    regions,
    sealed,
    seams,
    tables,
    tiling,
)
from iaunet.errors import InputError

log = logging.getLogger("measure")

MEASURED = ("image", "channel", "pixel_um", "source", "model", "core", "n_tiles", "n_batches")
VISIBLE = "outlines run along tile faces more often than elsewhere: tiles can be seen in the result"
BLOCK_PX = {2: (2048, 2048), 3: (64, 512, 512)}
"""Whole shards; deep enough in 3D that few objects are longer, which are read one by one."""
SAMPLED = 32
"""Objects that tell whether the image is in focus and not saturated, evenly spread."""
WINDOW_DIAMETERS = 2.5
SMALLEST_PX, FEWEST_SECTIONS = 6.0, 3
"""A median object that is narrower, or lies in fewer sections, has too few pixels to measure."""
UNLIKE = 1.5
"""How far outside the model's range a median object may be before the reader is told."""
IDENTITIES = ("label", "confidence", "crosses_seam", "n_tiles", "verdict")


ADDED = (
    "seconds",
    "cpu_seconds",
    "network_seconds",
    "n_tiles",
    "n_objects",
    "voxels",
    "voxels_computed",
    "voxels_decoded",
    "blocks_halved",
    "blocks_reused",
    "halo_checked",
    "halo_changed",
    "network_cpu_seconds",
    "clustering_seconds",
    "output_bytes",
)
"""What the records of several jobs of one step are added in."""
OF_JOBS = ("host", "started", "seconds", "cpu_seconds", "peak_memory_mb")
"""What is kept of every job."""
NOT_KEPT = ("code", "outlines")
"""What stands elsewhere: once for all steps, and summed up in metrics.json."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--store", type=Path, required=True, help="OME-Zarr with labels/instances")
    parser.add_argument("--tiles", type=Path, required=True, help="tiles.json of tile.py")
    parser.add_argument("--identities", type=Path, required=True, help="table of stitch.py")
    parser.add_argument("--seams", type=Path, required=True, help="seams.csv of stitch.py")
    parser.add_argument("--reference", type=Path, help="true labels: TIFF, PNG or OME-Zarr")
    parser.add_argument(
        "--records", type=Path, nargs="*", default=[], help="what the earlier steps used, JSON"
    )
    parser.add_argument(
        "--config",
        metavar="JSON",
        help="all settings of the image and its row of the table, to keep in provenance.json",
    )
    parser.add_argument("--output-csv", type=Path, required=True, help="objects, CSV to write")
    parser.add_argument("--output-parquet", type=Path, required=True, help="the same, Parquet")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON to write")
    parser.add_argument("--provenance", type=Path, required=True, help="JSON to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one image."""
    args = parse_args(argv)
    recorder = cli.Recorder("measure", args)
    config = None if args.config is None else cli.mapping("--config", args.config)
    tiles = tiling.read(args.tiles, MEASURED)
    records = [read_json(path) for path in args.records]
    for record in records:
        tables.check_sha256(args.seams, record.get("seams_sha256"))
    # Opened first: a reference that does not fit should not cost the time of measuring.
    overlap = None if args.reference is None else compare(args.reference, args.store)
    identities = tables.read_parquet(args.identities, IDENTITIES)
    objects = measure(args.store, tiles, identities)
    found_classes = classes_of(args.store)
    if found_classes is not None:
        objects = objects.assign(**found_classes.of_objects(objects))
    check_areas(objects, args.seams)
    steps = [*records, recorder.facts()]
    at_seams = seam_quality(objects, tiles, records)
    picture = picture_quality(args.store, objects, tiles)
    labels = omezarr.labels_attrs(args.store, omezarr.INSTANCES)
    failed = labels.get("failed_tiles", [])
    found = {
        **counts(objects, identities, tiles),
        "n_failed_tiles": len(failed),
        "failed_tiles": failed,
        **({} if found_classes is None else {"classes": found_classes.facts(objects, tiles)}),
        **throughput(tiles, steps),
        **at_seams,
        **picture,
        "warnings": [
            *failure_warnings(failed, labels.get("voxels_lost", 0), identities, tiles),
            *tiles.get("warnings", []),
            *memory_warnings(records),
            *halo_warnings(records),
            *warnings(objects, identities, tiles, overlap),
            *picture_warnings(picture),
            *size_warnings(objects, tiles),
            *seam_warnings(at_seams),
        ],
        **({} if overlap is None else metrics.accuracy(overlap)),
    }
    with cli.write_whole(args.output_parquet) as partial:
        tables.write_parquet(objects, partial)
    with cli.write_whole(args.output_csv) as partial:
        tables.write_csv(objects, partial)
    write_json(found, args.metrics)
    made = (args.store, args.output_csv, args.output_parquet, args.seams, args.metrics)
    origin = provenance(tiles, args.reference, config, failed, steps)
    write_json(
        {**origin, "outputs": {path.name: checksums.facts(path) for path in made}}, args.provenance
    )
    recorder.write(n_objects=len(objects))
    log.info("%s: %d objects", tiles["image"], len(objects))
    if overlap is not None:
        log.info("%s: AP50 %s, mean AP %s", tiles["image"], found["ap50"], found["ap_mean"])


def read_json(path: Path) -> dict:
    """Return a JSON file that an earlier step wrote."""
    try:
        return sealed.loads(path.read_text(), path)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file of an earlier step ({error})") from None


def write_json(facts: dict[str, object], path: Path) -> None:
    """Write plain facts."""
    with cli.write_whole(path) as partial:
        partial.write_text(sealed.dumps(facts))


def compare(reference: Path, store: Path) -> metrics.Overlap:
    """Return what the labels of the store share with those of a reference."""
    try:
        true = labelfiles.open_labels(reference)
    except InputError as error:
        raise InputError(f"column reference: {error}") from error
    return labelfiles.overlap(true, labelfiles.open_labels(store))


def measure(store: Path, tiles: dict, identities: tables.Table) -> tables.Table:
    """Return the table of objects."""
    labels, image = omezarr.open_labels(store), omezarr.open_level(store)
    columns = features.object_columns(labels.ndim, tiles["channel"], image.dtype)
    found = features.measure_objects(
        labels,
        image,
        block_px=BLOCK_PX[labels.ndim],
        pixel_um=tiles["pixel_um"],
        channel=tiles["channel"],
    )
    known = identities["label"].to_numpy(np.uint64)
    if not np.array_equal(found["label"], known):
        lost = np.setxor1d(found["label"], known)
        raise RuntimeError(f"labels and identities disagree on {len(lost)} objects: {lost[:5]}")
    found["image"] = [tiles["image"]] * len(known)
    for name in ("confidence", "crosses_seam", "n_tiles"):
        found[name] = identities[name].to_numpy()
    return tables.conform(found, columns)


@dataclass(frozen=True)
class Classes:
    """The classes of an image, and which objects have which voxels of them."""

    classes: list[classes.Class]
    shared: metrics.Overlap

    def of_objects(self, objects: tables.Table) -> dict[str, np.ndarray]:
        """Return the columns class and class_share: the most frequent class of a thing.

        The share is that of the object's voxels which are of the class. An object without a
        voxel of such a class has none.
        """
        things = [number for number, one in enumerate(self.classes, 1) if one.thing]
        kept = np.isin(self.shared.pairs[:, 0], things)
        (number, label), voxels = self.shared.pairs[kept].T, self.shared.shared[kept]
        order = np.lexsort((number, -voxels, label))
        found, first = np.unique(label[order], return_index=True)
        row = np.searchsorted(objects["label"].to_numpy(np.uint64), found)
        names, share = np.full(len(objects), "", dtype=object), np.zeros(len(objects))
        best = order[first]
        names[row] = [self.classes[k - 1].name for k in number[best].tolist()]
        share[row] = voxels[best] / objects[size_column(objects)].to_numpy()[row]
        return {"class": names, "class_share": share}

    def facts(self, objects: tables.Table, tiles: dict) -> list[dict[str, object]]:
        """Return size and number of objects of each class; the size of stuff is all there is."""
        sizes = dict(
            zip(self.shared.true_ids.tolist(), self.shared.true_areas.tolist(), strict=True)
        )
        size, voxel = size_column(objects), voxel_size(tiles)
        unit = "area_um2" if size == "area_px" else "volume_um3"
        return [
            {
                "name": one.name,
                "kind": "thing" if one.thing else "stuff",
                size: sizes.get(number, 0),
                unit: None if voxel is None else sizes.get(number, 0) * voxel,
                "fraction": sizes.get(number, 0) / math.prod(tiles["shape"]),
                "n_objects": int((objects["class"] == one.name).sum()) if one.thing else None,
            }
            for number, one in enumerate(self.classes, start=1)
        ]


def classes_of(store: Path) -> Classes | None:
    """Return the classes of the voxels of a store; None when the model tells none."""
    found = labelfiles.classes(store)
    if not found:
        return None
    of_voxels = labelfiles.open_labels(store / "labels" / omezarr.SEMANTIC)
    return Classes(found, labelfiles.overlap(of_voxels, labelfiles.open_labels(store)))


def size_column(objects: tables.Table) -> str:
    """Return the name of the column of sizes in voxels."""
    return "area_px" if "area_px" in objects else "volume_px"


def voxel_size(tiles: dict) -> float | None:
    """Return the size of a voxel in micrometres, to the power of the axes; None: not known."""
    pixel_um = tiles["pixel_um"]
    known = pixel_um is not None and None not in pixel_um
    return math.prod(pixel_um) if known else None


def check_areas(objects: tables.Table, seams: Path) -> None:
    """Raise when an object that several tiles agreed on has another size in the label image."""
    size = size_column(objects)
    seen = tables.read_csv(seams, {"label": "uint64", size: "int64", "verdict": "str"})
    seen = seen[seen["verdict"] == "agreed"]
    place = np.searchsorted(objects["label"], seen["label"])
    wrong = objects[size].to_numpy()[place] != seen[size].to_numpy()
    if wrong.any():
        labels = seen["label"].to_numpy()[wrong]
        raise RuntimeError(f"{wrong.sum()} objects were painted wrongly: {labels[:5]}")


def counts(objects: tables.Table, identities: tables.Table, tiles: dict) -> dict[str, object]:
    """Return numbers and densities of the objects of an image."""
    shape, pixel_um, voxel = tiles["shape"], tiles["pixel_um"], voxel_size(tiles)
    size, per = (
        ("area_px", "density_per_mm2") if len(shape) == 2 else ("volume_px", "density_per_mm3")
    )
    extent_mm = math.prod(shape) * (voxel or 0) / 1000 ** len(shape)
    return {
        "n_objects": len(objects),
        "n_tiles": tiles["n_tiles"],
        "n_batches": tiles["n_batches"],
        "shape": shape,
        "pixel_um": pixel_um,
        "foreground_fraction": int(objects[size].sum()) / math.prod(shape),
        per: len(objects) / extent_mm if extent_mm else None,
        f"median_{size}": float(objects[size].median()) if len(objects) else None,
        "n_crossing_seams": int(identities["crosses_seam"].sum()),
        "seam_conflicts": n_conflicts(identities),
    }


def n_conflicts(identities: tables.Table) -> int:
    """Return on how many objects tiles or tables disagree."""
    fine = (identity.AGREED, *identity.OF_FAILED_TILES)
    return int((~identities["verdict"].isin(fine)).sum())


def seam_quality(objects: tables.Table, tiles: dict, records: Sequence[dict]) -> dict[str, object]:
    """Return whether outlines, counts or sizes of objects tell where tiles meet; see `seams`."""
    ndim = len(tiles["shape"])
    cuts = {"straight_cut_score": None, "seams_visible": False}
    found = [record["outlines"] for record in records if "outlines" in record]
    if found and tiles["n_tiles"] > 1:
        cuts = seams.straight_cuts(np.sum(found, axis=0), tiles["core"])
    grid_shape = tiling.grid_shape(tiles)
    faces = [
        np.arange(core, n, core) * length / n
        for core, n, length in zip(tiles["core"], grid_shape, tiles["shape"], strict=True)
    ]
    size = size_column(objects)
    centres = objects[[f"{axis}_px" for axis in "zyx"[-ndim:]]].to_numpy(float)
    near = seams.near_faces(centres, objects[size].to_numpy(float), tiles["shape"], faces)
    proof = {k: v for record in records for k, v in record.items() if k.startswith("verified_")}
    return {**cuts, **near, **proof}


def seam_warnings(quality: dict) -> list[str]:
    """Return that tiles can be seen in the result, or were proved not to agree."""
    found = [VISIBLE] if quality["seams_visible"] else []
    differ = quality.get("verified_differ", 0)
    if differ:
        found.append(
            f"{differ} of {quality['verified_voxels']} voxels got another label when they were "
            "segmented again with other tiles"
        )
    return found


def picture_quality(store: Path, objects: tables.Table, tiles: dict) -> dict[str, object]:
    """Return focus and saturation of some objects; see `quality`. None where there is nothing."""
    sharp, values = [], []
    for window, own in around(store, objects):
        diameter = 2 * math.sqrt(np.count_nonzero(own) / math.pi)
        sharp.append(quality.focus(window, diameter))
        values.append(window[own])
    known = [value for value in sharp if value is not None]
    highest = tiles.get("range", (0, math.inf))[1]
    share, clipped = quality.saturated(np.concatenate(values or [np.zeros(0)]), highest)
    return {
        "focus": float(np.median(known)) if known else None,
        "saturated_fraction": share if values else None,
        "saturated": clipped,
    }


def around(store: Path, objects: tables.Table) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the plane through the middle of some objects: intensities, and where the object is.

    From a level of the pyramid on which a median object is not wider than `quality.MOST_PX`.
    """
    if not len(objects):
        return
    axes = [name[0] for name in objects.columns if name in ("z_px", "y_px", "x_px")]
    boxes = objects[[f"bbox_{axis}_{end}" for axis in axes for end in ("min", "max")]]
    boxes = boxes.to_numpy(float).reshape(-1, len(axes), 2)
    widest = (boxes[..., 1] - boxes[..., 0])[:, -2:].max(axis=1)
    level = max(0, math.ceil(math.log2(np.median(widest) / (quality.MOST_PX / 2))))
    level = min(level, len(omezarr.read_meta(store).levels) - 1)
    image, labels = omezarr.open_level(store, level), omezarr.open_labels(store, level=level)
    shrink = np.divide(omezarr.open_level(store).shape, image.shape)
    rows = np.unique(np.linspace(0, len(objects) - 1, SAMPLED).astype(int))
    for row in rows:
        middle = boxes[row].mean(axis=1) / shrink
        half = min(WINDOW_DIAMETERS / 2 * widest[row] / shrink[-1] + 1, quality.MOST_PX)
        box = tuple(
            slice(max(0, int(at - half)), int(at + half) + 1) if axis != "z" else int(at)
            for axis, at in zip(axes, middle, strict=True)
        )
        own = labels[box] == objects["label"].iloc[row]
        if own.any():
            yield image[box], own


def picture_warnings(picture: dict) -> list[str]:
    """Return that objects are blurred, or too bright for the camera."""
    found, focus = [], picture["focus"]
    if focus is not None and focus < quality.BLURRED:
        found.append(
            f"the objects are blurred: focus {focus:.2f}, below {quality.BLURRED}; their "
            "outlines, and what is measured in them, are uncertain"
        )
    if picture["saturated"]:
        found.append(
            f"the image is saturated: {100 * picture['saturated_fraction']:.2g} % of the objects' "
            "pixels have the largest value that there is, so intensities are too low"
        )
    return found


def size_warnings(objects: tables.Table, tiles: dict) -> list[str]:
    """Return that objects have too few pixels, or not the size that the model was trained with."""
    if not len(objects):
        return []
    found, ndim = [], len(tiles["shape"])
    spacing = (1.0,) * ndim if voxel_size(tiles) is None else tiles["pixel_um"]
    size = float(objects[size_column(objects)].median())
    width = regions.equivalent_diameter(size, spacing)[-1]
    if ndim == 3:
        n_sections = float((objects["bbox_z_max"] - objects["bbox_z_min"]).median())
        if n_sections < FEWEST_SECTIONS:
            found.append(
                f"a median object lies in {n_sections:.0f} section(s) only, below "
                f"{FEWEST_SECTIONS}: volumes are uncertain"
            )
    if width < SMALLEST_PX:
        found.append(
            f"a median object is {width:.1f} px wide, below {SMALLEST_PX:g}: sizes and shapes "
            "are uncertain"
        )
    known = tiles.get("model_diameter_px")
    if known:
        seen = width * tiling.grid_shape(tiles)[-1] / tiles["shape"][-1]
        low, high = known["smallest"][-1], known["largest"][-1]
        if not low / UNLIKE <= seen <= high * UNLIKE:
            found.append(
                f"unlike the training data: the network saw a median object {seen:.1f} px wide, "
                f"the model was trained with {low:g} to {high:g}; give diameter_px"
            )
    return found


def throughput(tiles: dict, records: Sequence[dict]) -> dict[str, object]:
    """Return the seconds of all jobs and the megapixels per second of the network."""
    infer = [record for record in records if record["step"] == "infer"]
    network = sum(record.get("network_seconds", record["seconds"]) for record in infer)
    return {
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "mpx_per_s": math.prod(tiles["shape"]) / 1e6 / network if network else None,
    }


def failure_warnings(
    failed: Sequence[quarantine.Failure], n_lost: int, identities: tables.Table, tiles: dict
) -> list[str]:
    """Return which tiles failed, and what that does to the objects around them."""
    if not failed:
        return []
    cut, near = (int((identities["verdict"] == one).sum()) for one in identity.OF_FAILED_TILES)
    return [
        quarantine.sentence(failed, tiles["n_tiles"]),
        f"around the tiles that failed {cut} objects are cut, {near} near them may have changed "
        f"(seams.csv), and {n_lost} voxels belong to objects whose centre is in them",
    ]


def memory_warnings(records: Sequence[dict]) -> list[str]:
    """Return that the network ran in other windows than elsewhere, for lack of memory."""
    halved = sum(record.get("blocks_halved", 0) for record in records)
    if not halved:
        return []
    return [
        f"too little memory: blocks of the network were halved {halved} times, and outputs there "
        "may differ by the last step of fixed point from those of a machine with more"
    ]


def halo_warnings(records: Sequence[dict]) -> list[str]:
    """Return what a halo below the exact one changed in the blocks that were computed twice."""
    checked = sum(record.get("halo_checked", 0) for record in records)
    changed = sum(record.get("halo_changed", 0) for record in records)
    if not checked:
        return []
    return [
        f"the halo is below the exact one: {changed} of {checked} sampled voxels differ "
        f"({100 * changed / checked:.2g} %)"
    ]


def warnings(
    objects: tables.Table,
    identities: tables.Table,
    tiles: dict,
    overlap: metrics.Overlap | None,
) -> list[str]:
    """Return what a reader of the numbers should know."""
    found = []
    conflicts = n_conflicts(identities)
    if conflicts:
        found.append(f"tiles or tables disagree on {conflicts} objects, see seams.csv")
    if tiles["pixel_um"] is None:
        found.append("pixel size unknown: no values in micrometres")
    if len(objects) == 0:
        found.append("no objects")
    n_large = features.n_too_large(objects)
    if n_large:
        found.append(f"{n_large} objects are too large for {features.NOT_OF_LARGE}")
    if overlap is not None and len(overlap.true_ids) == 1 and len(objects) > 1:
        found.append("the reference has one object only: is it a mask instead of labels?")
    return found


def provenance(
    tiles: dict,
    reference: Path | None,
    config: dict | None,
    failed: Sequence[quarantine.Failure],
    records: Sequence[dict],
) -> dict[str, object]:
    """Return what went in and what each step used, jobs of one step taken together.

    Relative paths are relative to `folder`.
    """
    names = list(dict.fromkeys(record["step"] for record in records))
    model = {"path": config["image"]["model"]} if config else {}
    return {
        "version": __version__,
        "code": code(records),
        "image": tiles["image"],
        "folder": str(Path.cwd()),
        "input": tiles["source"],
        "reference": None if reference is None else str(reference),
        "reference_source": None
        if reference is None
        else {"path": str(reference), **checksums.facts(reference)},
        "model": {**tiles["model"], **model},
        "config": config,
        "failed_tiles": failed,
        "tiling": {
            key: tiles.get(key)
            for key in (
                "core",
                "halo",
                "exact_halo",
                "n_tiles",
                "grid_shape",
                "diameter_px",
                "diameter_from",
            )
        },
        "steps": [
            joined([record for record in records if record["step"] == name]) for name in names
        ],
    }


def code(records: Sequence[dict]) -> dict[str, object]:
    """Return the commit of the workflow, all when it changed between the jobs; see `machine`."""
    known = [record["code"] for record in records if "code" in record]
    commits = sorted({str(one["commit"]) for one in known if one["commit"]})
    dirty = {one["dirty"] for one in known}
    return {
        "commit": ", ".join(commits) or None,
        "dirty": True if True in dirty else None if None in dirty or not dirty else False,
    }


def joined(records: Sequence[dict]) -> dict[str, object]:
    """Return one record for the jobs of a step.

    Seconds and counts are summed, of memory the largest counts, of versions and hosts all are
    kept; of the rest stays what all jobs agree on.
    """
    first = records[0]
    options = {
        key: value
        for key, value in first.get("options", {}).items()
        if all(record.get("options", {}).get(key) == value for record in records)
    }
    packages: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.get("packages", {}).items():
            packages.setdefault(name, set()).add(version)
    found = {
        "step": first["step"],
        "n_jobs": len(records),
        "peak_memory_mb": max(record.get("peak_memory_mb", 0) for record in records),
        **{
            key: ", ".join(sorted({record[key] for record in records if key in record}))
            for key in ("host", "cpu")
        },
        "jobs": [{key: record[key] for key in OF_JOBS if key in record} for record in records],
        "packages": {name: ", ".join(sorted(versions)) for name, versions in packages.items()},
        "options": options,
    }
    for key, value in first.items():
        values = [record.get(key) for record in records]
        if key in found or key in NOT_KEPT:
            continue
        if key in ADDED and None not in values:
            found[key] = round(sum(values), 3)
        elif all(other == value for other in values):
            found[key] = value
    return found


if __name__ == "__main__":
    cli.run(main)
