"""Tables of all batches -> the number of every object, 1 to n in the order of their seeds."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from iaunet import fragments, identity, joining, outputs, tables
from iaunet.errors import InputError

SIGHTING_COLUMNS = ("tile", "gid", "voxels_in_core", "area", "checksum")
COLUMNS = ("gid", "number")
"""Of the table that number.py writes."""


@dataclass(frozen=True)
class Tables:
    """What the batches of an image say about its objects."""

    instances: pd.DataFrame
    sightings: identity.Sightings
    joined: fragments.Joined | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name what cluster.py left of all batches."""
    parser.add_argument("--tiles", type=Path, required=True, help="tiles.json of tile.py")
    for option, text in (
        ("--labels", "label stores of cluster.py, all batches in order"),
        ("--tables", "tables of instances of cluster.py, all batches in order"),
        ("--sightings", "sightings of cluster.py, all batches in order"),
        ("--contacts", "contacts of cluster.py, all batches in order"),
    ):
        parser.add_argument(option, type=Path, required=True, nargs="+", help=text)


def read_tables(args: argparse.Namespace, tiles: Mapping) -> Tables:
    """Return the tables of all batches; raise when those of a batch are missing."""
    _check_batches(args, len(tiles["batches"]))
    reader = outputs.Reader(args.labels, tiles)
    instances = read_instances(args.tables, tiles["axes"])
    sightings = read_sightings(args.sightings)
    joined = fragments.joined(
        reader.facts(0), instances, args.contacts, len(tiles["shape"]), whole=not reader.failed()
    )
    return Tables(instances, sightings, joined)


def _check_batches(args: argparse.Namespace, n_batches: int) -> None:
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


def read_boxes(
    paths: Sequence[Path], axes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gids that were seen, ascending, and their first and last voxels per axis."""
    low, high = ([f"{end}_{axis}" for axis in axes] for end in ("min", "max"))
    every = pd.concat([tables.read_parquet(path, ("gid", *low, *high)) for path in paths])
    groups = every.groupby("gid", sort=True)
    first, last = groups[low].min(), groups[high].max()
    return first.index.to_numpy(np.uint64), first.to_numpy(np.int64), last.to_numpy(np.int64)


def numbers(gid: np.ndarray, joined: fragments.Joined | None) -> np.ndarray:
    """Return the number of every gid: its rank, or that of the object it is a fragment of."""
    if joined is None:
        return np.arange(1, len(gid) + 1)
    of_object = fragments.object_of(gid, joined)
    real = of_object != joining.NO_OBJECT
    ranks = np.zeros(len(gid), dtype=np.int64)
    ranks[real] = np.unique(of_object[real], return_inverse=True)[1] + 1
    return ranks


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return gids, ascending, and their numbers as number.py wrote them."""
    table = tables.read_parquet(path, COLUMNS)
    gid, number = table["gid"].to_numpy(np.uint64), table["number"].to_numpy(np.int64)
    if not (gid[1:] > gid[:-1]).all() or number.min(initial=0) < 0:
        raise InputError(f"{path}: not a table of number.py; run it again")
    return gid, number
