"""Count how often two label arrays have which labels at the same voxels."""

import numpy as np
from numba import njit

from iaunet.grid import volume

FIRST_CAPACITY = 1 << 10
NOWHERE = np.zeros((3, 2), dtype=np.int64)
"""Bounds of an empty box."""


def count(
    one: np.ndarray, other: np.ndarray, inner: tuple[slice, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs of labels of two arrays, everywhere and in a box of them.

    Parameters
    ----------
    one, other : unsigned integer arrays, equal shapes, at most three axes
    inner : box of the arrays; None: everywhere

    Returns
    -------
    keys : uint64 array, shape (n, 2)
        The pairs in no order, each once; (0, 0), background of both, is left out.
    counts : int64 array, shape (n, 2)
        Voxels everywhere, voxels in the box.

    Examples
    --------
    >>> keys, counts = count(np.array([0, 2, 2], np.uint8), np.array([0, 5, 5], np.uint8))
    >>> keys.tolist(), counts.tolist()
    ([[2, 5]], [[2, 2]])
    """
    if one.shape != other.shape:
        raise ValueError(f"labels differ in shape: {one.shape} and {other.shape}")
    box = (slice(0, 1),) * (3 - one.ndim) + (
        tuple(slice(0, length) for length in one.shape) if inner is None else inner
    )
    bounds = np.array([(side.start, side.stop) for side in box])
    keys, counts, _ = add(volume(one), volume(other), bounds, *table())
    occupied = counts[:, 0] > 0
    return keys[occupied], counts[occupied]


def table() -> tuple[np.ndarray, np.ndarray, int]:
    """Return an empty hash table: keys, counts, how many rows are filled."""
    keys = np.zeros((FIRST_CAPACITY, 2), dtype=np.uint64)
    return keys, np.zeros((FIRST_CAPACITY, 2), dtype=np.int64), 0


def touching(labels: np.ndarray) -> np.ndarray:
    """Return the pairs of labels that share a face of a voxel, the lower label first, (n, 2).

    Examples
    --------
    >>> touching(np.array([[4, 4, 0], [2, 0, 7]], np.uint8)).tolist()
    [[2, 4]]
    """
    keys, counts = _touching(volume(labels), *table())
    return keys[counts[:, 0] > 0]


@njit(cache=True, nogil=True)
def _place(keys, counts, one, other):
    """Return where the pair is in a hash table of power-of-two size, or where it would go."""
    mixed = one * np.uint64(0x9E3779B97F4A7C15) ^ other * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    mask = np.uint64(len(counts) - 1)
    place = mixed & mask
    while counts[place, 0] > 0 and (keys[place, 0] != one or keys[place, 1] != other):
        place = (place + np.uint64(1)) & mask
    return place


@njit(cache=True, nogil=True)
def add(one, other, bounds, keys, counts, filled):
    """Add the runs of equal pairs to a hash table, which grows when half full.

    Parameters
    ----------
    one, other : unsigned integer arrays of three axes
    bounds : (3, 2) int64, the box that is counted besides
    keys, counts, filled : of `table` or an earlier call; the result takes their place
    """
    length = one.shape[2]
    if length == 0:
        return keys, counts, filled
    low, high = bounds[2]
    for z in range(one.shape[0]):
        for y in range(one.shape[1]):
            inside = bounds[0, 0] <= z < bounds[0, 1] and bounds[1, 0] <= y < bounds[1, 1]
            line, opposite = one[z, y], other[z, y]
            first, second, start = line[0], opposite[0], 0
            for x in range(1, length + 1):
                if x < length and line[x] == first and opposite[x] == second:
                    continue
                if first != 0 or second != 0:
                    place = _place(keys, counts, np.uint64(first), np.uint64(second))
                    if counts[place, 0] == 0:
                        keys[place, 0] = first
                        keys[place, 1] = second
                        filled += 1
                    counts[place, 0] += x - start
                    if inside:
                        counts[place, 1] += max(0, min(x, high) - max(start, low))
                    if 2 * filled > len(counts):
                        keys, counts = _grown(keys, counts)
                if x < length:
                    first, second, start = line[x], opposite[x], x
    return keys, counts, filled


@njit(cache=True, nogil=True)
def _grown(keys, counts):
    more_keys = np.zeros((2 * len(counts), 2), dtype=np.uint64)
    more_counts = np.zeros((2 * len(counts), 2), dtype=np.int64)
    for old in range(len(counts)):
        if counts[old, 0] > 0:
            place = _place(more_keys, more_counts, keys[old, 0], keys[old, 1])
            more_keys[place] = keys[old]
            more_counts[place] = counts[old]
    return more_keys, more_counts


@njit(cache=True, nogil=True)
def _touching(labels, keys, counts, filled):
    last = np.zeros((3, 2), dtype=labels.dtype)
    depth, height, length = labels.shape
    for z in range(depth):
        for y in range(height):
            for x in range(length):
                here = labels[z, y, x]
                if here == 0:
                    continue
                for axis in range(3):
                    if axis == 2:
                        there = labels[z, y, x + 1] if x + 1 < length else here
                    elif axis == 1:
                        there = labels[z, y + 1, x] if y + 1 < height else here
                    else:
                        there = labels[z + 1, y, x] if z + 1 < depth else here
                    if there == here or there == 0:
                        continue
                    if last[axis, 0] == here and last[axis, 1] == there:
                        continue
                    last[axis, 0], last[axis, 1] = here, there
                    low, high = np.uint64(min(here, there)), np.uint64(max(here, there))
                    place = _place(keys, counts, low, high)
                    if counts[place, 0] == 0:
                        keys[place, 0], keys[place, 1] = low, high
                        counts[place, 0] = 1
                        filled += 1
                        if 2 * filled > len(counts):
                            keys, counts = _grown(keys, counts)
    return keys, counts
