"""Split the images of an ablation three ways; draw them when there is no table.

The part that trainings see (train), the part that thresholds are fitted on (validation) and the
part that is scored (test) have no group in common. Drawn images are of kinds in which objects
touch and look alike, because there identity matters, if anywhere.

Example
-------
    python ablation_images.py --images ablation/images --fit ablation/fit.csv \
        --test ablation/test.csv
    python ablation_images.py --table mine.csv --images ablation/images --fit ablation/fit.csv \
        --test ablation/test.csv
"""

import argparse
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from iaunet import cli, sticks, synthetic, tables
from iaunet.errors import InputError

log = logging.getLogger("ablation_images")

PARTS = {"test": 0.25, "validation": 0.15, "train": 0.6}
"""Shares of the groups of a table that has no column `split`."""
DRAWN = {"train": 40, "validation": 8, "test": 40}
"""Images of each kind that are drawn."""
SHAPE = (192, 192)
PATHS = ("path", "reference", "roi")
COLUMNS = ("image", *PATHS, "channel", "scene", "frame", "group", "weight", "split", "kind")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--table", type=Path, help="CSV of images with masks; without it images are drawn")
    add("--images", type=Path, required=True, help="folder for drawn images")
    add("--fit", type=Path, required=True, help="table to write: train and validation")
    add("--test", type=Path, required=True, help="table to write: test")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write both tables."""
    args = parse_args(argv)
    recorder = cli.Recorder("ablation_images", args)
    with cli.write_whole(args.images) as folder:
        folder.mkdir()
        rows = drawn_rows(folder) if args.table is None else split_rows(args.table)
    counts = {part: sum(row["split"] == part for row in rows) for part in PARTS}
    for part, count in counts.items():
        if not count:
            raise InputError(
                f"{args.table}: no image left for the part '{part}'; needs more groups, or a "
                "column split with train, validation and test"
            )
    base = args.images if args.table is None else args.table.parent
    write(args.fit, [row for row in rows if row["split"] != "test"], base, COLUMNS)
    without = [name for name in COLUMNS if name != "split"]  # a training knows two parts
    write(args.test, [row for row in rows if row["split"] == "test"], base, without)
    log.info(
        "%d images to train, %d to validate, %d to test", *(counts[p] for p in reversed(PARTS))
    )
    recorder.write(**counts)


def drawn_rows(folder: Path) -> list[dict[str, str]]:
    """Draw images of every kind; return their rows, paths relative to the folder."""
    rows = []
    for number, (kind, draw) in enumerate(KINDS.items()):
        for part_number, (part, count) in enumerate(DRAWN.items()):
            for index in range(count):
                name = f"{kind}-{part}-{index}"
                image, labels = draw(np.random.default_rng([number, part_number, index]))
                tifffile.imwrite(folder / f"{name}.tif", image, compression="zlib")
                mask = labels.astype(np.uint16)
                tifffile.imwrite(folder / f"{name}_mask.tif", mask, compression="zlib")
                row = {"image": name, "path": f"{name}.tif", "reference": f"{name}_mask.tif"}
                rows.append(row | {"group": name, "split": part, "kind": kind})
    return rows


def crowded_nuclei(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw nuclei in clumps, of one size and brightness, blurred and with few photons."""
    return synthetic.draw_nuclei(
        SHAPE,
        rng,
        diameter_px=float(rng.uniform(14, 20)),
        coverage=0.35,
        clustered=0.7,
        size_spread=0.06,
        elongation=0.25,
        irregularity=0.08,
        texture=0.1,
        brightness_ratio=1.2,
        blur_px=1.4,
        haze=0.4,
        photons=20.0,
    )


def crossing_sticks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw scattered sticks at half their size, so that crops of short trainings show them."""
    image, labels = sticks.draw(rng)
    height, width = (length // 2 for length in labels.shape)
    small = image.reshape(height, 2, width, 2).mean((1, 3)).round().astype(np.uint8)
    return small, labels[::2, ::2]


KINDS = {"nuclei": crowded_nuclei, "sticks": crossing_sticks}
"""What is drawn: image and labels."""


def split_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a user's table, each with its part and kind."""
    frame = tables.read_images(table).fillna("")
    rows = []
    for position, row in zip(frame.index, frame.to_dict("records"), strict=True):
        if not row["reference"]:
            raise InputError(f"{table}: row {position}: no reference; an ablation needs masks")
        group = row["group"] or row["image"]
        part = row.get("split", "") or part_of(group)
        if part not in PARTS:
            raise InputError(
                f"{table}: row {position}: split is '{part}', needs train, validation or test"
            )
        rows.append(row | {"group": group, "split": part, "kind": row.get("kind") or "images"})
    parts = {(row["group"], row["split"]) for row in rows}
    groups = [group for group, _ in sorted(parts)]
    twice = next((group for group in groups if groups.count(group) > 1), None)
    if twice is not None:
        raise InputError(f"{table}: group '{twice}' is in several parts of the split; needs one")
    return rows


def part_of(group: str) -> str:
    """Return test, validation or train by the hash of a group, the same in every run."""
    number = int.from_bytes(hashlib.sha256(f"ablation {group}".encode()).digest()[:4], "big")
    place, total = number / 2**32, 0.0
    for part, share in PARTS.items():
        total += share
        if place < total:
            return part
    return "train"


def write(path: Path, rows: Sequence[dict[str, str]], base: Path, names: Sequence[str]) -> None:
    """Write rows as a table; paths, which are relative to `base`, become relative to it."""
    columns = {name: [row.get(name, "") for row in rows] for name in names}
    for name in PATHS:
        columns[name] = [
            os.path.relpath(base / value, path.parent) if value else "" for value in columns[name]
        ]
    with cli.write_whole(path) as partial:
        tables.write_csv(tables.conform(columns, dict.fromkeys(names, "str")), partial)


if __name__ == "__main__":
    cli.run(main)
