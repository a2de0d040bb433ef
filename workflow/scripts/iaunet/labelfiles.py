"""Label images in files: open them, and count what two of them share, block by block."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iaunet import images, metrics, omezarr
from iaunet.classes import Class
from iaunet.errors import InputError
from iaunet.grid import Box

BLOCK_BYTES = 16 << 20
BLOCKS_PER_MERGE = 64
ALIGN_PX = {2: (1024, 1024), 3: (16, 512, 512)}
LABELS_OF_A_STORE = Path("labels", "instances")


def open_labels(path: Path) -> images.Image:
    """Open labels in a TIFF, PNG or OME-Zarr; of a store of ours, the instances.

    Raises
    ------
    InputError
        Not an image, or one that holds no integers.
    """
    path = Path(path)
    if (path / LABELS_OF_A_STORE / "zarr.json").is_file():
        path = path / LABELS_OF_A_STORE
    elif (path / "labels").is_dir():
        raise InputError(
            f"{path}: an image with labels; give the path of the labels inside it, for "
            f"instance {path / 'labels' / 'NAME'}"
        )
    labels = images.open_image(path)
    if labels.dtype.kind not in "ui":
        raise InputError(f"{path}: holds {labels.dtype} values; needs labels, integers >= 0")
    return labels


def classes(store: Path) -> list[Class]:
    """Return the classes of the voxels of a store of ours; none: its model tells none."""
    if not (Path(store) / "labels" / omezarr.SEMANTIC).is_dir():
        return []
    try:
        return [Class(**one) for one in omezarr.labels_attrs(store, omezarr.SEMANTIC)["classes"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{store}: classes that are none ({error}); make it again") from error


def overlap(true: images.Image, predicted: images.Image) -> metrics.Overlap:
    """Count shared voxels block by block; memory does not grow with the size of the images.

    Raises
    ------
    InputError
        The shapes differ, or a label is negative.
    """
    if true.shape != predicted.shape:
        raise InputError(
            f"{true.path}: the reference has {_sides(true.shape)} px, {predicted.path} has "
            f"{_sides(predicted.shape)} px; needs a reference of the same shape"
        )
    merged = metrics.merge_overlaps([])
    parts = []
    for box in true.blocks(ALIGN_PX[true.ndim], BLOCK_BYTES):
        parts.append(metrics.overlap(read(true, box), read(predicted, box)))
        if len(parts) == BLOCKS_PER_MERGE:
            merged, parts = metrics.merge_overlaps([merged, *parts]), []
    return metrics.merge_overlaps([merged, *parts])


def read(image: images.Image, box: Box | None = None) -> np.ndarray:
    """Return the labels in a box, or all; a negative one is an `InputError`."""
    labels = image.read(box)
    if labels.dtype.kind == "i" and labels.min(initial=0) < 0:
        raise InputError(
            f"{image.path}: holds the negative value {labels.min()}; needs labels, "
            "integers >= 0, 0 is background"
        )
    return labels


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
