"""Annotated images of a training table, split as the training splits them."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet import images, labelfiles, tables
from iaunet.errors import InputError

VALIDATION_SHARE = 0.15
SIDES = ("train", "validation")


@dataclass(frozen=True)
class Row:
    """A row of the table: which image, which mask, which side of the split."""

    name: str
    group: str
    side: str
    path: Path
    reference: Path


@dataclass(frozen=True)
class Case:
    """An image with its true instances: intensities as stored, labels with 0 as background."""

    name: str
    group: str
    image: np.ndarray
    labels: np.ndarray


def read_rows(table: Path) -> list[Row]:
    """Return the rows of a training table.

    Raises
    ------
    InputError
        A name that cannot be a file name or stands twice, no reference, or an unknown split.
    """
    rows: dict[str, Row] = {}
    for line, row in tables.read_images(table).iterrows():
        name, split = row["image"], row.get("split", "")
        where = f"{table}, line {line}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) or name in rows:
            raise InputError(
                f"{where}: image '{name}': needs a name of letters, digits, '.', '_', '-' that "
                "stands once"
            )
        if not row["reference"]:
            raise InputError(f"{where}: no reference; a comparison needs a mask")
        if split not in ("", *SIDES):
            raise InputError(f"{where}: split is '{split}', needs {' or '.join(SIDES)}")
        group = row["group"] or name
        paths = (Path(table).parent / row[key] for key in ("path", "reference"))
        rows[name] = Row(name, group, split or side_of(group), *paths)
    return list(rows.values())


def side_of(group: str) -> str:
    """Return train or validation by the hash of a group, as `train.side_of` does."""
    number = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big")
    return "validation" if number / 2**32 < VALIDATION_SHARE else "train"


def rows_of(table: Path, side: str) -> list[Row]:
    """Return the rows of one side of the split; there is at least one."""
    rows = [row for row in read_rows(table) if row.side == side]
    if not rows:
        raise InputError(f"{table}: no image for {side}; add some, or a column split")
    return rows


def load(row: Row) -> Case:
    """Read image and mask of a row."""
    image, labels = images.open_image(row.path), labelfiles.open_labels(row.reference)
    if image.ndim != 2 or image.shape != labels.shape:
        raise InputError(
            f"{row.path}: shape {image.shape}, its mask {row.reference} has {labels.shape}; "
            "needs two axes and equal shapes"
        )
    return Case(row.name, row.group, whole(image), whole(labels))


def whole(image: images.Image) -> np.ndarray:
    """Return all pixels of an opened image."""
    return image.read(tuple(slice(0, n) for n in image.shape))


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """Return at most `count` of the images, evenly chosen over the groups."""
    ordered = sorted(cases, key=lambda case: (case.group, case.name))
    count = min(count, len(ordered))
    return [ordered[k * len(ordered) // count] for k in range(count)]
