r"""Give every object its final number: labels of all batches -> OME-Zarr, identities, seams.

Clustering names an object by the place of its seed voxel in the whole image, so the batches
agree already; this step proves it, numbers the objects 1 to n in that order and writes one
label image beside the image. Labels do not depend on the tiling. Where the network worked on
another grid than the image's own, labels come back to the latter here.

Example
-------
    python stitch.py --store image.zarr --tiles tiles.json \
        --labels labels/0.zarr labels/1.zarr \
        --tables labels/0.parquet labels/1.parquet \
        --sightings labels/0.sightings.parquet labels/1.sightings.parquet \
        --contacts labels/0.contacts.parquet labels/1.contacts.parquet \
        --output cells.ome.zarr --identities identities.parquet --seams seams.csv
"""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iaunet import (
    __version__,
    checksums,
    cli,
    fixedpoint,
    fragments,
    grid,
    identity,
    numbering,
    omezarr,
    outputs,
    quarantine,
    relabelling,
    scale,
    tables,
    tiling,
)
from iaunet.errors import InputError

log = logging.getLogger("stitch")

VERIFIED = ("halo", "limits", "source")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    numbering.add_options(parser)
    for option, text in (
        ("--store", "image store of tile.py"),
        ("--output", "OME-Zarr to create: image and labels"),
        ("--identities", "Parquet table to create: one row per object"),
        ("--seams", "CSV table to create: one row per object that several tiles saw"),
    ):
        parser.add_argument(option, type=Path, required=True, help=text)
    for option, text in (
        ("--painted", "stores of paint.py, all parts, when the labels are written already"),
        ("--counts", "tables of paint.py, all parts"),
    ):
        parser.add_argument(option, type=Path, nargs="*", default=[], help=text)
    parser.add_argument(
        "--verify",
        type=int,
        default=0,
        metavar="N",
        help="segment N windows where tiles meet once more, as tiles of their own, and compare",
    )
    parser.add_argument("--model", type=Path, help="model file, to verify with")
    parser.add_argument("--device", default="auto", help="to verify on: auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    if len(args.painted) != len(args.counts):
        parser.error("--painted and --counts need the same number of files")
    if args.verify < 0 or (args.verify and args.model is None):
        parser.error("--verify needs a number of windows of 0 or more, and --model")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the labelled store and the two tables."""
    args = parse_args(argv)
    recorder = cli.Recorder("stitch", args)
    tiles = tiling.read(
        args.tiles,
        ("axes", "core", "batches", "image", "model", *(VERIFIED if args.verify else ())),
    )
    known = numbering.read_tables(args, tiles)
    instances, joined = known.instances, known.joined
    reader = outputs.Reader(args.labels, tiles)
    with cli.write_whole(args.output) as partial:
        gid, sizes = write_store(partial, args, reader, tiles, known)
    same_grid = reader.shape == tiles["shape"]
    voxels = sizes if same_grid else relabelling.count_labels(reader, gid)
    found = judge(gid, sizes, voxels, known)
    failed = reader.failed()
    if failed:
        log.warning("%s: %s", tiles["image"], quarantine.sentence(failed, n_tiles(tiles)))
        margin = reader.facts(0)["reach"]
        boxes = numbering.read_boxes(args.sightings, tiles["axes"])
        found = found.assign(verdict=flagged(found, boxes, failed, margin, joined))
    if joined is not None:
        found = fragments.objects(found, tiles["batches"])
        instances = fragments.instances(instances, joined)
    with cli.write_whole(args.identities) as partial:
        tables.write_parquet(identities(found, instances, tiles), partial)
    seams = seam_table(found, tiles)
    if joined is not None:
        seams = pd.concat([seams, fragments.rows(joined, found, seams.columns, tiles["image"])])
    with cli.write_whole(args.seams) as partial:
        tables.write_csv(seams, partial)

    n_objects = int(found["label"].max()) if len(found) else 0
    counts = found["verdict"].value_counts()
    doubtful = {str(name): int(n) for name, n in counts.items() if name != identity.AGREED}
    if doubtful:
        log.warning("%s: look at %s: %s", tiles["image"], args.seams, doubtful)
    log.info(
        "%s: %d objects, %d seen by several tiles, %d flagged",
        tiles["image"],
        n_objects,
        int((found["n_tiles"] > 1).sum()),
        sum(doubtful.values()),
    )
    proof = verified(args, tiles, reader) | {"seams_sha256": checksums.sha256(args.seams)}
    recorder.write(n_objects=n_objects, n_seams=len(seams), flagged=doubtful, **proof)


def n_tiles(tiles: dict) -> int:
    """Return how many tiles the image has."""
    return grid.n_tiles(tiling.grid_shape(tiles), tiles["core"])


def flagged(
    found: pd.DataFrame,
    boxes: tuple[np.ndarray, np.ndarray, np.ndarray],
    failed: Sequence[quarantine.Failure],
    margin_px: Sequence[int],
    joined: fragments.Joined | None,
) -> np.ndarray:
    """Return the verdicts, with those on objects at or near the region of a tile that failed.

    What lies farther than `margin_px` is what it would be had no tile failed. Tiles at such a
    region need not agree: there, every other verdict gives way.
    """
    gid, low, high = boxes
    verdict = found["verdict"].to_numpy(object).copy()
    for name, margin in ((identity.NEAR, margin_px), (identity.CUT, [1] * low.shape[1])):
        there = gid[quarantine.within(low, high, failed, margin)]
        if joined is not None:
            there = fragments.in_groups_with(there, joined)
        verdict[np.isin(found["gid"].to_numpy(np.uint64), there)] = name
    return verdict


def verified(args: argparse.Namespace, tiles: dict, reader: outputs.Reader) -> dict[str, int]:
    """Return how many voxels were segmented once more, and how many got another label."""
    if not args.verify:
        return {}
    # With torch and numba, few runs need them here.
    from iaunet import backends, checkpoint, network, verify
    from iaunet.bounds import Bounds
    from iaunet.settings import Settings

    net, meta = checkpoint.load(args.model)
    network.check_model(args.model, meta, tiles)
    facts = reader.facts(0)
    computed = facts["computed"]
    if any(reader.facts(k)["computed"] != computed for k in range(len(tiles["batches"]))):
        log.warning("%s: batches were computed in several ways, windows may differ", tiles["image"])
    device = network.pick_device(args.device, computed["backend"])
    net = backends.prepare(net, computed["backend"], computed["precision"], device, 1)
    blocks = network.open_blocks(args.store, tiles, net, meta, tiles["halo"], 1)
    settings = Settings.from_dict(facts["settings"], len(blocks.shape))
    bounds = Bounds(*(tuple(facts["bounds"][name]) for name in ("off", "lsig")))
    rng = np.random.default_rng(int(tiles["source"]["sha256"][:15], 16))
    boxes = verify.windows(blocks.shape, tiles["core"], args.verify, rng)
    failed, margin = reader.failed(), facts.get("reach")
    boxes = [box for box in boxes if not meets(box, failed, margin)]
    different = 0
    for box in boxes:
        found = verify.differing_voxels(
            box, blocks, lambda here: reader.read(outputs.LABELS, here), settings, bounds
        )
        if found:
            log.warning("%s: %d voxels of window %s differ", tiles["image"], found, box)
        different += found
    voxels = sum(math.prod(grid.box_shape(box)) for box in boxes)
    log.info("%s: %d of %d voxels segmented again differ", tiles["image"], different, voxels)
    return {"verified_windows": len(boxes), "verified_voxels": voxels, "verified_differ": different}


def meets(box: grid.Box, failed: Sequence[quarantine.Failure], margin_px: Sequence[int]) -> bool:
    """Tell whether a box comes as near to the region of a failed tile as `margin_px`."""
    low = np.array([[side.start for side in box]])
    high = np.array([[side.stop - 1 for side in box]])
    return bool(quarantine.within(low, high, failed, margin_px)[0]) if failed else False


def write_store(
    path: Path,
    args: argparse.Namespace,
    reader: outputs.Reader,
    tiles: dict,
    known: numbering.Tables,
) -> tuple[np.ndarray, np.ndarray]:
    """Write image and labels; return the gids of all fragments or objects, and their voxels.

    The numbers are ranks among the gids of all objects, which are known from the sightings. When
    the labels hold others all the same, they are written once more with the gids that were found.
    """
    shape = omezarr.read_meta(args.store).shape
    if shape != tiles["shape"]:
        raise InputError(f"{args.store}: shape {shape}, the list of tiles has {tiles['shape']}")
    attrs = provenance(reader, tiles)
    expected, painted = np.unique(known.sightings.gid), bool(args.painted)
    while True:
        omezarr.link_image(args.store, path)
        number = numbering.numbers(expected, known.joined)
        n_objects = int(number.max(initial=0))
        dtype = relabelling.label_dtype(n_objects)
        labels = omezarr.add_labels(
            path, omezarr.INSTANCES, dtype, {**attrs, "n_objects": n_objects}
        )
        boxes = relabelling.part(labels, 0, 1)
        if painted:
            found, voxels = take_parts(path, args.painted, args.counts)
        else:
            levels = omezarr.levels(path)
            found, voxels = relabelling.write_labels(levels, reader, expected, number, boxes)
        if np.array_equal(found, expected):
            if painted:
                omezarr.write_label_pyramid(path)
            write_classes(path, args.painted, reader, boxes)
            return found, voxels
        log.warning(
            "%d objects in the labels, %d in the sightings; numbering again",
            len(found),
            len(expected),
        )
        expected, painted = found, False
        cli.remove(path)


def write_classes(
    path: Path, painted: Sequence[Path], reader: outputs.Reader, boxes: Sequence[grid.Box]
) -> None:
    """Write the classes of all voxels, when the network tells them."""
    if not reader.has(outputs.CLASSES):
        return
    classes = reader.facts(0)["classes"]
    omezarr.add_labels(
        path,
        omezarr.SEMANTIC,
        fixedpoint.DTYPE[outputs.CLASSES],
        {"classes": classes},
        [one["name"] for one in classes],
    )
    if painted:
        link_parts(path, painted, omezarr.SEMANTIC)
        omezarr.write_label_pyramid(path, omezarr.SEMANTIC)
    else:
        relabelling.write_classes(omezarr.levels(path, omezarr.SEMANTIC), reader, boxes)


def link_parts(path: Path, parts: Sequence[Path], name: str) -> None:
    """Take the shards of labels from the parts; raise when some are missing."""
    for part in parts:
        omezarr.link_part(part, path, name)
    missing = omezarr.n_missing_shards(path, name)
    if missing:
        raise InputError(f"--painted: {missing} shards of the labels are in none of the parts")


def take_parts(
    path: Path, parts: Sequence[Path], counts: Sequence[Path]
) -> tuple[np.ndarray, np.ndarray]:
    """Take the labels that paint.py wrote; return gids and voxels found."""
    link_parts(path, parts, omezarr.INSTANCES)
    frames = [tables.read_parquet(found, ("gid", "voxels")) for found in counts]
    return relabelling.added(
        [frame["gid"].to_numpy(np.uint64) for frame in frames],
        [frame["voxels"].to_numpy(np.int64) for frame in frames],
    )


def provenance(reader: outputs.Reader, tiles: dict) -> dict[str, object]:
    """Return what made the labels; nothing that depends on tiles, time or machine, but failures."""
    options = [reader.facts(batch).get("settings") for batch in range(len(tiles["batches"]))]
    for batch, found in enumerate(options):
        if found != options[0]:
            raise InputError(
                f"batch {batch} was clustered with {found}, batch 0 with {options[0]}; needs the "
                "same settings for all, run cluster.py again"
            )
    model = {key: tiles["model"].get(key) for key in ("name", "sha256")}
    failed = quarantine.on_grid(reader.failed(), reader.shape, tiles["shape"])
    lost = sum(reader.facts(batch).get("voxels_lost", 0) for batch in range(len(tiles["batches"])))
    return {
        "version": __version__,
        "model": model,
        "clustering": options[0],
        "network_grid": list(reader.shape),
        **({"failed_tiles": failed, "voxels_lost": lost} if failed else {}),
    }


def judge(
    labelled: np.ndarray, sizes: np.ndarray, voxels: np.ndarray, known: numbering.Tables
) -> pd.DataFrame:
    """Return one row per gid that labels, tables or sightings know, with the verdict.

    Objects without voxels are in no label image: they get the label 0. `sizes` are of the
    labelled objects on the image's grid, `voxels` on the network's, as are all other counts.
    """
    owned = known.instances["gid"].to_numpy()
    gid = np.unique(np.concatenate([labelled, owned, known.sightings.gid]))
    place = np.searchsorted(gid, labelled)
    label, size, on_grid = np.zeros((3, len(gid)), dtype=np.int64)
    label[place] = numbering.numbers(labelled, known.joined)
    size[place] = sizes
    on_grid[place] = voxels
    rows = np.bincount(np.searchsorted(gid, owned), minlength=len(gid))
    seen = identity.weigh(gid, known.sightings)
    verdicts = identity.verdict(seen, rows, on_grid)
    # Only those of the table of seams are asked for: a text for each takes time and memory.
    tiles = np.full(len(gid), "", dtype=object)
    for index in np.flatnonzero((seen.n_tiles > 1) | (verdicts != identity.AGREED)):
        tiles[index] = " ".join(map(str, seen.tiles_of(index)))
    return pd.DataFrame(
        {
            "label": label,
            "gid": gid,
            "n_tiles": seen.n_tiles,
            "tiles": tiles,
            "n_batches": seen.n_batches,
            "size": size,
            "voxels": on_grid,
            "area": seen.area,
            "claimed": seen.claimed,
            "n_rows": rows,
            "min_voxels_in_a_core": seen.min_voxels_in_a_core,
            "agreement": seen.agreement,
            "verdict": verdicts,
        }
    )


def identities(found: pd.DataFrame, instances: pd.DataFrame, tiles: dict) -> pd.DataFrame:
    """Return one row per label, 1 to n; an orphan has no confidence and no descriptor."""
    found = found[found["label"] > 0].reset_index(drop=True)
    known = instances.drop_duplicates("gid").set_index("gid").reindex(found["gid"])
    to = tiling.grid_shape(tiles)
    on_grid = np.unravel_index(found["gid"].to_numpy().astype(np.int64), to)
    seeds = scale.under(on_grid, to, tiles["shape"])
    descriptor = [name for name in instances.columns if name.startswith("id_")]
    return pd.DataFrame(
        {
            "label": found["label"],
            "gid": found["gid"],
            **{f"seed_{axis}": seed for axis, seed in zip(tiles["axes"], seeds, strict=True)},
            "confidence": known["confidence"].to_numpy(np.float32),
            "crosses_seam": found["n_tiles"] > 1,
            "n_tiles": found["n_tiles"],
            "n_batches": found["n_batches"],
            "verdict": found["verdict"].astype(str),
            **{name: known[name].to_numpy(np.float32) for name in descriptor},
        }
    )


def seam_table(found: pd.DataFrame, tiles: dict) -> pd.DataFrame:
    """Return one row per object that several tiles saw or that is flagged, by gid."""
    rows = found[(found["n_tiles"] > 1) | (found["verdict"] != identity.AGREED)]
    size = "area_px" if len(tiles["shape"]) == 2 else "volume_px"
    return pd.DataFrame(
        {
            "image": np.full(len(rows), tiles["image"], dtype=object),
            "label": rows["label"],
            "gid": rows["gid"],
            "n_tiles": rows["n_tiles"],
            "tiles": rows["tiles"],
            "n_batches": rows["n_batches"],
            size: rows["size"],
            "min_voxels_in_a_core": rows["min_voxels_in_a_core"],
            "agreement": rows["agreement"].round(6),
            "evidence": [evidence(row) for row in rows.itertuples()],
            "probability": np.full(len(rows), np.nan),
            "verdict": rows["verdict"],
        }
    )


def evidence(row) -> str:
    """Return what the verdict rests on, in words."""
    if row.verdict == identity.AGREED:
        return "all tiles report the same voxels; cores sum to the whole"
    if row.verdict == identity.CUT:
        return "touches the empty region of a tile that failed, or is joined with what does"
    if row.verdict == identity.NEAR:
        return "near the empty region of a tile that failed, which may have changed it"
    return (
        f"{row.voxels} voxels in the labels, {row.claimed} reported in cores, {row.area} for the "
        f"whole object; {row.n_rows} rows in the tables of instances"
    )


if __name__ == "__main__":
    cli.run(main)
