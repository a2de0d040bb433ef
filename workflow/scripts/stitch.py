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
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iaunet import (
    __version__,
    cli,
    fragments,
    grid,
    identity,
    joining,
    omezarr,
    outputs,
    scale,
    tables,
    tiling,
)
from iaunet.bounds import Bounds
from iaunet.errors import InputError
from iaunet.settings import Settings

log = logging.getLogger("stitch")

VERIFIED = ("halo", "limits", "source")
SIGHTING_COLUMNS = ("tile", "gid", "voxels_in_core", "area", "checksum")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    for option, many, text in (
        ("--store", False, "image store of tile.py"),
        ("--tiles", False, "tiles.json of tile.py"),
        ("--labels", True, "label stores of cluster.py, all batches in order"),
        ("--tables", True, "tables of instances of cluster.py, all batches in order"),
        ("--sightings", True, "sightings of cluster.py, all batches in order"),
        ("--contacts", True, "contacts of cluster.py, all batches in order"),
        ("--output", False, "OME-Zarr to create: image and labels"),
        ("--identities", False, "Parquet table to create: one row per object"),
        ("--seams", False, "CSV table to create: one row per object that several tiles saw"),
    ):
        parser.add_argument(
            option, type=Path, required=True, nargs="+" if many else None, help=text
        )
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
    check_batches(args, len(tiles["batches"]))
    reader = outputs.Reader(args.labels, tiles)
    instances = read_instances(args.tables, tiles["axes"])
    sightings = read_sightings(args.sightings)

    joined = fragments.joined(reader.facts(0), instances, args.contacts, len(tiles["shape"]))

    with cli.write_whole(args.output) as partial:
        expected = np.unique(sightings.gid)
        gid, sizes = write_store(partial, args.store, reader, tiles, expected, joined)
    voxels = sizes if reader.shape == tiles["shape"] else count_labels(reader, gid)
    found = judge(gid, sizes, voxels, instances["gid"].to_numpy(), sightings, joined)
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
    flagged = {str(name): int(n) for name, n in counts.items() if name != identity.AGREED}
    if flagged:
        log.warning("%s: look at %s: %s", tiles["image"], args.seams, flagged)
    log.info(
        "%s: %d objects, %d seen by several tiles, %d flagged",
        tiles["image"],
        n_objects,
        int((found["n_tiles"] > 1).sum()),
        sum(flagged.values()),
    )
    proof = verified(args, tiles, reader)
    recorder.write(n_objects=n_objects, n_seams=len(seams), flagged=flagged, **proof)


def verified(args: argparse.Namespace, tiles: dict, reader: outputs.Reader) -> dict[str, int]:
    """Return how many voxels were segmented once more, and how many got another label."""
    if not args.verify:
        return {}
    from iaunet import checkpoint, network, verify  # with torch, which few runs need here

    net, meta = checkpoint.load(args.model)
    network.check_model(args.model, meta, tiles)
    net = net.to(network.pick_device(args.device))
    blocks = network.open_blocks(args.store, tiles, net, meta, tiles["halo"], 1)
    facts = reader.facts(0)
    settings = Settings.from_dict(facts["settings"], len(blocks.shape))
    bounds = Bounds(*(tuple(facts["bounds"][name]) for name in ("off", "lsig")))
    rng = np.random.default_rng(int(tiles["source"]["sha256"][:15], 16))
    boxes = verify.windows(blocks.shape, tiles["core"], args.verify, rng)
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


def check_batches(args: argparse.Namespace, n_batches: int) -> None:
    """Raise when the outputs of a batch are missing, and say of which."""
    lacking = []
    for option in ("labels", "tables", "sightings", "contacts"):
        paths = getattr(args, option)
        if len(paths) != n_batches:
            raise InputError(
                f"--{option}: found {len(paths)} paths, {args.tiles} has {n_batches} batches; "
                "needs one per batch, in order"
            )
        lacking += [f"{path} (batch {k})" for k, path in enumerate(paths) if not path.exists()]
    if lacking:
        raise InputError(f"missing: {', '.join(lacking)}; run cluster.py again for these batches")


def read_instances(paths: Sequence[Path], axes: Sequence[str]) -> pd.DataFrame:
    """Return the tables of all batches as one, by gid."""
    frames = [tables.read_parquet(path) for path in paths]
    needed = ["gid", *(f"seed_{axis}" for axis in axes), "area", "confidence"]
    for path, frame in zip(paths, frames, strict=True):
        absent = [name for name in needed if name not in frame.columns]
        if absent or list(frame.columns) != list(frames[0].columns):
            raise InputError(
                f"{path}: columns {', '.join(frame.columns)[:200]}; needs {', '.join(needed)} and "
                f"those of {paths[0]}; the batches are of different versions, run them again"
            )
    everything = pd.concat(frames, ignore_index=True)
    kept = needed + [name for name in everything.columns if name.startswith("id_")]
    everything["gid"] = everything["gid"].astype(np.uint64)
    return everything[kept].sort_values("gid", kind="stable", ignore_index=True)


def read_sightings(paths: Sequence[Path]) -> identity.Sightings:
    """Return the sightings of all batches."""
    frames = [tables.read_parquet(path, SIGHTING_COLUMNS) for path in paths]
    batch = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
    everything = pd.concat(frames, ignore_index=True)
    return identity.Sightings(
        gid=everything["gid"].to_numpy(np.uint64),
        tile=everything["tile"].to_numpy(np.int64),
        batch=batch,
        voxels_in_core=everything["voxels_in_core"].to_numpy(np.int64),
        area=everything["area"].to_numpy(np.int64),
        checksum=everything["checksum"].to_numpy(np.uint64),
    )


def write_store(
    path: Path,
    source: Path,
    reader: outputs.Reader,
    tiles: dict,
    expected: np.ndarray,
    joined: fragments.Joined | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Write image and labels; return the gids of all fragments or objects, and their voxels.

    The numbers are ranks among the gids of all objects, which are known from the sightings. When
    the labels hold others all the same, they are written once more with the gids that were found.
    """
    shape = omezarr.read_meta(source).shape
    if shape != tiles["shape"]:
        raise InputError(f"{source}: shape {shape}, the list of tiles has {tiles['shape']}")
    attrs = provenance(reader, tiles)
    while True:
        omezarr.link_image(source, path)
        number = numbers(expected, joined)
        n_objects = int(number.max(initial=0))
        labels = omezarr.add_labels(
            path, "instances", label_dtype(n_objects), {**attrs, "n_objects": n_objects}
        )
        found, voxels = write_labels(labels, reader, expected, number)
        if np.array_equal(found, expected):
            omezarr.write_label_pyramid(path)
            return found, voxels
        log.warning(
            "%d objects in the labels, %d in the sightings; numbering again",
            len(found),
            len(expected),
        )
        expected = found
        cli.remove(path)


def numbers(gid: np.ndarray, joined: fragments.Joined | None) -> np.ndarray:
    """Return the number of every gid: its rank, or that of the object it is a fragment of."""
    if joined is None:
        return np.arange(1, len(gid) + 1)
    of_object = fragments.object_of(gid, joined)
    real = of_object != joining.NO_OBJECT
    ranks = np.zeros(len(gid), dtype=np.int64)
    ranks[real] = np.unique(of_object[real], return_inverse=True)[1] + 1
    return ranks


def write_labels(
    labels, reader: outputs.Reader, gid: np.ndarray, number: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Write level 0, a union of whole shards at a time; return gids and voxels found.

    A value that is not among the gids is written as 0.
    """
    values = np.concatenate([np.zeros(1, np.uint64), gid + np.uint64(1)])
    number = np.concatenate([np.zeros(1, number.dtype), number]).astype(labels.dtype)
    names, sums = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for box in regions(labels.shape, labels.shards or labels.chunks):
        named = read_labels(reader, labels.shape, box)
        numbered, here, counts = identity.relabel(named, values, number)
        omezarr.write_box(labels, box, numbered)
        names.append(here)
        sums.append(counts)
        if len(names) > 256:
            names, sums = ([part] for part in added(names, sums))
    found, voxels = added(names, sums)
    n_voxels = math.prod(reader.shape)
    if len(found) and int(found[-1]) > n_voxels:
        raise InputError(
            f"the labels of the batches hold {found[-1]}, needs at most {n_voxels}, the number of "
            "voxels; they are not of cluster.py or damaged, run it again"
        )
    return found - np.uint64(1), voxels


def read_labels(reader: outputs.Reader, shape: Sequence[int], box: grid.Box) -> np.ndarray:
    """Return a box of the labels on the image's grid: of each voxel the nearest one."""
    at = scale.nearest(reader.shape, shape, box)
    source = tuple(slice(int(index[0]), int(index[-1]) + 1) for index in at)
    here = reader.read(outputs.LABELS, source)
    if here.shape == grid.box_shape(box):
        return here
    return here[np.ix_(*(i - side.start for i, side in zip(at, source, strict=True)))]


def count_labels(reader: outputs.Reader, gid: np.ndarray) -> np.ndarray:
    """Return how many voxels of the network's grid each gid has."""
    names, sums = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for box in regions(reader.shape, reader.core_px):
        here, counts = np.unique(reader.read(outputs.LABELS, box), return_counts=True)
        names, sums = ([part] for part in added([*names, here], [*sums, counts]))
    found, voxels = added(names, sums)
    return voxels[np.searchsorted(found, gid + np.uint64(1))]


def added(names: list[np.ndarray], sums: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return every name once, ascending, with the sum of its counts."""
    found, place = np.unique(np.concatenate(names), return_inverse=True)
    total = np.zeros(len(found), dtype=np.int64)
    np.add.at(total, place, np.concatenate(sums))
    return found, total


def regions(shape: Sequence[int], part_px: Sequence[int]) -> Iterator[grid.Box]:
    """Yield boxes that are unions of whole parts and not thinner than what readers decode."""
    inner = outputs.INNER_PX[len(shape)]
    size = [step * -(-least // step) for step, least in zip(part_px, inner, strict=True)]
    for tile in grid.tiles(shape, size):
        yield tile.core


def label_dtype(n_objects: int) -> np.dtype:
    """Return the type of the final labels.

    Examples
    --------
    >>> label_dtype(2**32 - 1), label_dtype(2**32)
    (dtype('uint32'), dtype('uint64'))
    """
    return np.dtype(np.uint32 if n_objects < 2**32 else np.uint64)


def provenance(reader: outputs.Reader, tiles: dict) -> dict[str, object]:
    """Return what made the labels; nothing that depends on tiles, time or machine."""
    options = [reader.facts(batch).get("settings") for batch in range(len(tiles["batches"]))]
    for batch, found in enumerate(options):
        if found != options[0]:
            raise InputError(
                f"batch {batch} was clustered with {found}, batch 0 with {options[0]}; needs the "
                "same settings for all, run cluster.py again"
            )
    model = {key: tiles["model"].get(key) for key in ("name", "sha256")}
    return {
        "version": __version__,
        "model": model,
        "clustering": options[0],
        "network_grid": list(reader.shape),
    }


def judge(
    labelled: np.ndarray,
    sizes: np.ndarray,
    voxels: np.ndarray,
    owned: np.ndarray,
    sightings: identity.Sightings,
    joined: fragments.Joined | None,
) -> pd.DataFrame:
    """Return one row per gid that labels, tables or sightings know, with the verdict.

    Objects without voxels are in no label image: they get the label 0. `sizes` are of the
    labelled objects on the image's grid, `voxels` on the network's, as are all other counts.
    """
    gid = np.unique(np.concatenate([labelled, owned, sightings.gid]))
    place = np.searchsorted(gid, labelled)
    label, size, on_grid = np.zeros((3, len(gid)), dtype=np.int64)
    label[place] = numbers(labelled, joined)
    size[place] = sizes
    on_grid[place] = voxels
    rows = np.bincount(np.searchsorted(gid, owned), minlength=len(gid))
    seen = identity.weigh(gid, sightings)
    return pd.DataFrame(
        {
            "label": label,
            "gid": gid,
            "n_tiles": seen.n_tiles,
            "tiles": [" ".join(map(str, here)) for here in seen.tiles],
            "n_batches": seen.n_batches,
            "size": size,
            "voxels": on_grid,
            "area": seen.area,
            "claimed": seen.claimed,
            "n_rows": rows,
            "min_voxels_in_a_core": seen.min_voxels_in_a_core,
            "agreement": seen.agreement,
            "verdict": identity.verdict(seen, rows, on_grid),
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
            "verdict": rows["verdict"],
        }
    )


def evidence(row) -> str:
    """Return what the verdict rests on, in words."""
    if row.verdict == identity.AGREED:
        return "all tiles report the same voxels; cores sum to the whole"
    return (
        f"{row.voxels} voxels in the labels, {row.claimed} reported in cores, {row.area} for the "
        f"whole object; {row.n_rows} rows in the tables of instances"
    )


if __name__ == "__main__":
    cli.run(main)
