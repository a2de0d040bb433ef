"""The table of a training: its rows, the images and masks that they name, and their sides."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet import images, labelfiles, tables
from iaunet.errors import InputError

VALIDATION_SHARE = 0.15
VALIDATION_VOXELS = 1 << 24
"""Largest image to validate with: it goes through the network at once."""
BYTES_VALIDATED = 1100
"""Of every voxel of an image that goes through the network at once (2D, measured)."""
BYTES_KEPT = 7
"""Of every voxel for the whole training: image 2, labels 4, distance 1."""
BYTES_READ = 9
"""Of every voxel besides, of the one image that is being read."""
UNKNOWN_CLASS = 255
"""Stands for a voxel whose class is not annotated."""
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Entry:
    """A row of the table with its opened files.

    `roi` is where it is annotated, if not all; `classes` of every voxel, if they are known.
    """

    name: str
    group: str
    side: str
    weight: float | None
    image: images.Image
    mask: images.Image
    roi: images.Image | None
    classes: images.Image | None

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return image, labels, and where they are annotated; none: everywhere.

        Raises
        ------
        InputError
            There are NaN or infinite values, negative labels, a mask that is the image, or no
            annotation at all.
        """
        image, labels = self.image.read(), self.mask.read()
        if labels.min(initial=0) < 0:
            raise InputError(f"{self.mask.path}: negative labels; a mask has 0 for background")
        if labels.any() and np.array_equal(image, labels):
            raise InputError(f"{self.mask.path}: the same as its image; needs the mask")
        n_bad = 0 if image.dtype.kind != "f" else image.size - int(np.isfinite(image).sum())
        if n_bad:
            raise InputError(f"{self.image.path}: {n_bad} values are NaN or infinite; replace them")
        roi = None if self.roi is None else self.roi.read() != 0
        if roi is not None and not roi.any():
            raise InputError(f"{self.roi.path}: 0 everywhere: nothing is annotated")
        return image, labels, roi

    def read_classes(self, n_classes: int) -> np.ndarray | None:
        """Return the class of every voxel, -1 where it is not annotated; None: not known.

        Raises
        ------
        InputError
            There is a class above `n_classes`, other than 255 for what is not annotated.
        """
        if self.classes is None:
            return None
        found = self.classes.read().astype(np.int64)
        found[found == UNKNOWN_CLASS] = -1
        if found.min(initial=0) < -1 or found.max(initial=0) > n_classes:
            wrong = found[(found < -1) | (found > n_classes)][0]
            raise InputError(
                f"{self.classes.path}: class {wrong}; --classes names {n_classes}, needs 0 "
                f"(background) to {n_classes}, or {UNKNOWN_CLASS} where it is not annotated"
            )
        return found


def read_table(table: Path) -> list[Entry]:
    """Return the rows of the table; files are opened and compared, no pixel is read.

    Raises
    ------
    InputError
        A row lacks something, or its files do not belong together.
    """
    frame = tables.read_images(table).fillna("")
    rows = zip(frame.index, frame.to_dict("records"), strict=True)
    entries = [_entry(row, table, f"{table}: row {position}") for position, row in rows]
    for entry in entries:
        voxels = math.prod(entry.image.shape)
        if entry.side == "validation" and voxels > VALIDATION_VOXELS:
            raise InputError(
                f"{entry.image.path}: {voxels} voxels, at most {VALIDATION_VOXELS} to validate "
                "with; cut it into several images of one group, or set its split to train"
            )
    return entries


def _entry(row: dict[str, str], table: Path, where: str) -> Entry:
    row = {"split": "", "roi": "", "weight": "", "classes": "", **row}
    if not row["reference"]:
        raise InputError(f"{where}: no reference; training needs a mask")
    if row["split"] not in ("", "train", "validation"):
        raise InputError(f"{where}: split is '{row['split']}', needs train or validation")
    image = images.open_image(
        table.parent / row["path"],
        channel=row["channel"] or None,
        scene=row["scene"] or None,
        frame=row["frame"] or None,
    )
    mask = _like(image, labelfiles.open_labels(table.parent / row["reference"]))
    roi, classes = (
        _like(image, images.open_image(table.parent / row[name])) if row[name] else None
        for name in ("roi", "classes")
    )
    group = row["group"] or row["image"]
    weight = _weight(row["weight"], where)
    side = row["split"] or side_of(group)
    return Entry(row["image"], group, side, weight, image, mask, roi, classes)


def _weight(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(f"{where}: weight is '{text}', needs a number above 0")
    return weight


def _like(image: images.Image, mask: images.Image) -> images.Image:
    if image.shape != mask.shape:
        raise InputError(
            f"{mask.path}: shape {mask.shape}, its image {image.path} has {image.shape}; needs "
            "a mask of the same shape"
        )
    return mask


def side_of(group: str) -> str:
    """Return train or validation by the hash of a group, the same in every run."""
    number = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big")
    return "validation" if number / 2**32 < VALIDATION_SHARE else "train"


def check_memory(entries: Sequence[Entry], table: Path) -> None:
    """Raise InputError when the images do not fit into the memory that is free."""
    voxels = [math.prod(entry.image.shape) for entry in entries]
    validated = [n for n, entry in zip(voxels, entries, strict=True) if entry.side != "train"]
    once = BYTES_READ * max(voxels, default=0), BYTES_VALIDATED * max(validated, default=0)
    needed = BYTES_KEPT * sum(voxels) + max(once)
    free = free_bytes()
    if free is not None and needed > free:
        raise InputError(
            f"{table}: needs {needed / 1e9:.1f} GB of memory for {sum(voxels)} voxels, "
            f"{free / 1e9:.1f} GB are free; leave images out, or cut parts out of the largest"
        )


def free_bytes() -> int | None:
    """Return the free memory of the machine; None where the system does not tell."""
    if MEMORY.exists():
        for line in MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
