"""Annotated images of a training table, split as the training splits them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet import trainingset
from iaunet.errors import InputError

SIDES = ("train", "validation")


@dataclass(frozen=True)
class Case:
    """An image with its true instances: intensities as stored, labels with 0 as background."""

    name: str
    group: str
    image: np.ndarray
    labels: np.ndarray


def entries_of(table: Path, side: str) -> list[trainingset.Entry]:
    """Return the rows of one side of the split; there is at least one.

    Raises
    ------
    InputError
        A name that cannot be a file name or stands twice, an image that is not 2D or that is
        annotated in a part of it only, or no image on this side.
    """
    entries = trainingset.read_table(table)
    names = [entry.name for entry in entries]
    for entry in entries:
        good = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", entry.name)
        if not good or names.count(entry.name) > 1:
            raise InputError(
                f"{table}: image '{entry.name}': needs a name of letters, digits, '.', '_', '-' "
                "that stands once"
            )
        if entry.image.ndim != 2 or entry.roi is not None:
            raise InputError(f"{table}: image '{entry.name}': peers need 2D images without a roi")
    found = [entry for entry in entries if entry.side == side]
    if not found:
        raise InputError(f"{table}: no image for {side}; add some, or a column split")
    return found


def load(entry: trainingset.Entry) -> Case:
    """Read image and mask of a row."""
    image, labels, _ = entry.read()
    return Case(entry.name, entry.group, image, labels)


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """Return at most `count` of the images, evenly chosen over the groups."""
    ordered = sorted(cases, key=lambda case: (case.group, case.name))
    count = min(count, len(ordered))
    return [ordered[k * len(ordered) // count] for k in range(count)]
