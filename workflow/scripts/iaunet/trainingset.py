"""The table of a training: its rows, the images and masks that they name, and their sides."""

import hashlib
from pathlib import Path

import numpy as np

from iaunet import images, labelfiles, tables
from iaunet.errors import InputError

VALIDATION_SHARE = 0.15


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of the training table, checked."""
    frame = tables.read_images(table).fillna("")
    rows = []
    for position, row in zip(frame.index, frame.to_dict("records"), strict=True):
        row = {"split": "", "roi": "", **row}
        if not row["reference"]:
            raise InputError(f"{table}: row {position}: no reference; training needs a mask")
        if row["split"] not in ("", "train", "validation"):
            raise InputError(
                f"{table}: row {position}: split is '{row['split']}', needs train or validation"
            )
        rows.append(row)
    return rows


def load_row(row: dict[str, str], table: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return image and mask of a row, and where it is annotated if that is not everywhere."""
    path, reference = (table.parent / row[key] for key in ("path", "reference"))
    opened = images.open_image(
        path, channel=row["channel"] or None, scene=row["scene"] or None, frame=row["frame"] or None
    )
    labels = like(opened, labelfiles.open_labels(reference)).read()
    if labels.size and labels.min() < 0:
        raise InputError(f"{reference}: negative labels; a mask has 0 for background")
    return opened.read(), labels, read_roi(row, table, opened)


def read_roi(row: dict[str, str], table: Path, image: images.Image) -> np.ndarray | None:
    """Return where an image is annotated, None when the row does not restrict it."""
    if not row["roi"]:
        return None
    roi = like(image, images.open_image(table.parent / row["roi"])).read() != 0
    if not roi.any():
        raise InputError(f"{table.parent / row['roi']}: 0 everywhere: nothing is annotated")
    return roi


def like(image: images.Image, mask: images.Image) -> images.Image:
    """Return the mask, whose shape is that of the image."""
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
