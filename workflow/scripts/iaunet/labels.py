"""Integer label arrays: which objects are there, how large, where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from iaunet.grid import volume


@dataclass(frozen=True)
class Extents:
    """Size and place of every object of a label array, by ascending id.

    Attributes
    ----------
    ids : uint64 array, shape (n,)
    areas : int64 array, shape (n,)
        Voxels.
    starts, stops : int64 arrays, shape (n, axes)
        Half-open bounding boxes.
    sums : int64 array, shape (n, axes)
        Sums of the voxel coordinates; divided by the area they are the centroid.
    """

    ids: np.ndarray
    areas: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    sums: np.ndarray


def extents(labels: np.ndarray, origin: Sequence[int]) -> Extents:
    """Return the extents of the objects in a block of an image that starts at `origin`.

    Examples
    --------
    >>> found = extents(np.array([[0, 3], [3, 3]]), origin=(10, 20))
    >>> found.ids.tolist(), found.areas.tolist(), found.starts.tolist(), found.stops.tolist()
    ([3], [3], [[10, 20]], [[12, 22]])
    """
    ndim = labels.ndim
    native = labels.astype(labels.dtype.newbyteorder("="), copy=False)
    if ndim <= 3 and native.dtype.kind == "u" and native.max(initial=0) < _most_dense(native.size):
        return _extents_of_small_ids(native, origin)
    rows = np.ascontiguousarray(native).reshape(-1, labels.shape[-1])
    ids, row, start, stop = _runs(rows)
    # The run lies in one row: its leading coordinates are one number each.
    first = np.stack([*np.unravel_index(row, labels.shape[:-1]), start], axis=1) + origin
    last = first.copy()
    last[:, -1] += stop - start - 1
    length = stop - start
    sums = first * length[:, None]
    sums[:, -1] = (first[:, -1] + last[:, -1]) * length // 2
    return _grouped(ids, length, first, last + 1, sums, ndim)


def ids_of(labels: np.ndarray) -> np.ndarray:
    """Return the ids that occur in unsigned labels, 0 too if it does, ascending.

    Examples
    --------
    >>> ids_of(np.array([[7, 3], [3, 0]], dtype=np.uint16)).tolist()
    [0, 3, 7]
    """
    if labels.ndim > 3 or labels.max(initial=0) >= _most_dense(labels.size):
        return np.unique(labels)
    seen = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.bool_)
    _mark(volume(labels), seen)
    return np.flatnonzero(seen)


def _grouped(
    ids: np.ndarray,
    areas: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    sums: np.ndarray,
    ndim: int,
) -> Extents:
    """Join the rows of the same id."""
    if len(ids) == 0:
        nothing = np.zeros((0, ndim), dtype=np.int64)
        return Extents(np.zeros(0, np.uint64), np.zeros(0, np.int64), nothing, nothing, nothing)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    return Extents(
        ids=ids[first],
        areas=np.add.reduceat(areas[order], first),
        starts=np.minimum.reduceat(starts[order], first, axis=0),
        stops=np.maximum.reduceat(stops[order], first, axis=0),
        sums=np.add.reduceat(sums[order], first, axis=0),
    )


def _most_dense(n_voxels: int) -> int:
    """Return up to which id a table with a row per id takes less memory than the labels."""
    return max(1 << 12, n_voxels // 32)


def _extents_of_small_ids(labels: np.ndarray, origin: Sequence[int]) -> Extents:
    """Return the extents of objects by a table that has a row per id."""
    table = np.zeros((int(labels.max(initial=0)) + 1, 10), dtype=np.int64)
    table[:, 1:4] = np.iinfo(np.int64).max
    _tabulate(volume(labels), table)
    ids = np.flatnonzero(table[:, 0])
    area, found = table[ids, 0], table[ids, 1:].reshape(-1, 3, 3)[:, :, 3 - labels.ndim :]
    origin = np.array(origin, dtype=np.int64)
    return Extents(
        ids=ids.astype(np.uint64),
        areas=area,
        starts=found[:, 0] + origin,
        stops=found[:, 1] + origin,
        sums=found[:, 2] + origin * area[:, None],
    )


@njit(cache=True, nogil=True)
def _mark(labels, seen):
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                seen[labels[z, y, x]] = True


@njit(cache=True, nogil=True)
def _tabulate(labels, table):
    """Add to the rows of ids: voxels, first and end coordinates, sums of coordinates."""
    length = labels.shape[2]
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            x = 0
            while x < length:
                value = labels[z, y, x]
                start = x
                x += 1
                while x < length and labels[z, y, x] == value:
                    x += 1
                if value == 0:
                    continue
                row = table[value]
                count = x - start
                row[0] += count
                row[1] = min(row[1], z)
                row[2] = min(row[2], y)
                row[3] = min(row[3], start)
                row[4] = max(row[4], z + 1)
                row[5] = max(row[5], y + 1)
                row[6] = max(row[6], x)
                row[7] += z * count
                row[8] += y * count
                row[9] += (start + x - 1) * count // 2


@njit(cache=True, nogil=True)
def _count_runs(rows: np.ndarray) -> int:
    count = 0
    for row in range(rows.shape[0]):
        previous = rows.dtype.type(0)
        for column in range(rows.shape[1]):
            value = rows[row, column]
            if value != previous and value != 0:
                count += 1
            previous = value
    return count


@njit(cache=True, nogil=True)
def _runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return id, row, first column and end column of the stretches of one non-zero id."""
    count = _count_runs(rows)
    ids = np.empty(count, dtype=np.uint64)
    where = np.empty((3, count), dtype=np.int64)
    k = 0
    for row in range(rows.shape[0]):
        column = 0
        while column < rows.shape[1]:
            value = rows[row, column]
            start = column
            while column < rows.shape[1] and rows[row, column] == value:
                column += 1
            if value != 0:
                ids[k] = value
                where[0, k] = row
                where[1, k] = start
                where[2, k] = column
                k += 1
    return ids, where[0], where[1], where[2]
