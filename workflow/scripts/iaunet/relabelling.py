"""Labels of the batches, named by gid -> final labels, numbered, on the image's own grid."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from iaunet import grid, identity, omezarr, outputs, scale
from iaunet.errors import InputError


def write_labels(
    labels: omezarr.Levels,
    reader: outputs.Reader,
    gid: np.ndarray,
    number: np.ndarray,
    boxes: Iterable[grid.Box],
) -> tuple[np.ndarray, np.ndarray]:
    """Write boxes; return the gids found there and their voxels.

    A value that is not among the gids is written as 0.

    Parameters
    ----------
    gid : uint64 array, ascending
    number : the number of each, 0: none
    boxes : some of `regions`
    """
    values = np.concatenate([np.zeros(1, np.uint64), gid + np.uint64(1)])
    number = np.concatenate([np.zeros(1, number.dtype), number]).astype(labels.fine.dtype)
    names, sums = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for box in labels.ordered(boxes):
        named = read_nearest(reader, outputs.LABELS, labels.fine.shape, box)
        numbered, here, counts = identity.relabel(named, values, number)
        labels.write(box, numbered)
        names.append(here)
        sums.append(counts)
        if len(names) > 256:
            names, sums = ([part] for part in added(names, sums))
    labels.close()
    found, voxels = added(names, sums)
    n_voxels = math.prod(reader.shape)
    if len(found) and int(found[-1]) > n_voxels:
        raise InputError(
            f"the labels of the batches hold {found[-1]}, needs at most {n_voxels}, the number of "
            "voxels; they are not of cluster.py or damaged, run it again"
        )
    return found - np.uint64(1), voxels


def write_classes(
    classes: omezarr.Levels, reader: outputs.Reader, boxes: Iterable[grid.Box]
) -> None:
    """Write boxes of the classes of voxels."""
    for box in classes.ordered(boxes):
        classes.write(box, read_nearest(reader, outputs.CLASSES, classes.fine.shape, box))
    classes.close()


def read_nearest(
    reader: outputs.Reader, name: str, shape: Sequence[int], box: grid.Box
) -> np.ndarray:
    """Return a box of an array on the image's grid: of each voxel the nearest one."""
    at = scale.nearest(reader.shape, shape, box)
    source = tuple(slice(int(index[0]), int(index[-1]) + 1) for index in at)
    here = reader.read(name, source)
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


def part(labels, k: int, n_parts: int) -> list[grid.Box]:
    """Return the boxes that part `k` of `n_parts` of the labels writes: whole shards in a row."""
    boxes = list(regions(labels.shape, labels.shards))
    return boxes[slice(*grid.batches(len(boxes), n_parts)[k])]


def regions(shape: Sequence[int], part_px: Sequence[int]) -> Iterator[grid.Box]:
    """Yield boxes that are unions of whole parts and not thinner than what readers decode."""
    inner = outputs.LABELS_PX[len(shape)]
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
