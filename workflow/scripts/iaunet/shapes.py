"""Sums over the voxels of objects, and the shape and brightness that follow from them.

Definitions are those of ``skimage.measure.regionprops``; the kernels do many objects in one call.
Arrays have three axes, a 2D image has one section. An object is looked at in its own box.
"""

import math

import numpy as np
from numba import njit

from iaunet import hulls

PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
"""Axes of the last six of the ten sums: 1, z, y, x and the products of two."""

# Benkrid and Crookes: a pixel of the outline counts by its neighbours in it, 2 each beside it and
# 10 each at its corners.
KIND = np.full(50, 3)
KIND[[5, 7, 15, 17, 25, 27]], KIND[[21, 33]], KIND[[13, 23]] = 0, 1, 2
LENGTH = np.array([1, math.sqrt(2), (1 + math.sqrt(2)) / 2])
"""Length of outline that a pixel of each kind stands for; those of kind 3 add nothing."""


def covariance(sums: np.ndarray, ndim: int) -> np.ndarray:
    """Return the covariance of the voxel coordinates, (n, ndim, ndim), px squared.

    `sums` are those of `coordinate_sums`, as floats.
    """
    result = np.zeros((len(sums), ndim, ndim))
    for k, (one, other) in enumerate(PAIRS):
        i, j = one + ndim - 3, other + ndim - 3
        if min(i, j) >= 0:
            mixed = sums[:, 0] * sums[:, 4 + k] - sums[:, 1 + one] * sums[:, 1 + other]
            result[:, i, j] = result[:, j, i] = mixed / sums[:, 0] ** 2
    return result


def moved(sums: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return `coordinate_sums` counted from a place `offset` before the box, (n, axes)."""
    lead = np.zeros((len(sums), 3 - offset.shape[1]), dtype=offset.dtype)
    offset = np.column_stack([lead, offset])
    result, size = sums.copy(), sums[:, 0]
    for axis in range(3):
        result[:, 1 + axis] += offset[:, axis] * size
    for k, (one, other) in enumerate(PAIRS):
        i, j = offset[:, one], offset[:, other]
        result[:, 4 + k] += i * sums[:, 1 + other] + j * sums[:, 1 + one] + i * j * size
    return result


def axis_lengths(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the longest and the shortest axis of the ellipsoids with the same covariance."""
    ndim = covariance.shape[1]
    lengths = 2 * np.sqrt((ndim + 2) * np.maximum(np.linalg.eigvalsh(covariance), 0))
    return lengths[:, -1], lengths[:, 0]


def eccentricity(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    """Return the eccentricity of ellipses; that of a point is 0."""
    ratio = np.divide(minor, major, out=np.ones_like(major), where=major > 0)
    return np.sqrt(1 - ratio**2)


def equivalent_diameter(size: np.ndarray, ndim: int) -> np.ndarray:
    """Return the diameter of the circles or balls of the same size."""
    return (2 * ndim * size / math.pi) ** (1 / ndim)


def perimeter(counts: np.ndarray) -> np.ndarray:
    """Return the perimeter from counts of the three kinds of pixels of the outline, (n, 3)."""
    return counts @ LENGTH


@njit(cache=True, nogil=True)
def coordinate_sums(labels, ids, starts, stops):
    """Return sums over the voxels of each object, counted from the start of its box.

    Returns
    -------
    (n, 10) int64
        Of 1; z, y, x; zz, yy, xx, zy, zx, yx.
    """
    sums = np.zeros((len(ids), 10), dtype=np.int64)
    for k in range(len(ids)):
        row = sums[k]
        for z in range(stops[k, 0] - starts[k, 0]):
            for y in range(stops[k, 1] - starts[k, 1]):
                line = labels[starts[k, 0] + z, starts[k, 1] + y, starts[k, 2] : stops[k, 2]]
                n, along, squares = 0, 0, 0
                for x in range(len(line)):
                    if line[x] == ids[k]:
                        n, along, squares = n + 1, along + x, squares + x * x
                row[0] += n
                row[1] += z * n
                row[2] += y * n
                row[3] += along
                row[4] += z * z * n
                row[5] += y * y * n
                row[6] += squares
                row[7] += z * y * n
                row[8] += z * along
                row[9] += y * along
    return sums


@njit(cache=True, nogil=True)
def brightness(labels, image, ids, starts, stops, sizes):
    """Return the sums of the values, of their squares about the mean, and the ends.

    Returns
    -------
    (n,) and (n,) float64, (n, 2) of the type of the image
        The ends are the smallest and the largest value.
    """
    totals, spreads = np.zeros(len(ids)), np.zeros(len(ids))
    ends = np.zeros((len(ids), 2), dtype=image.dtype)
    for k in range(len(ids)):
        values = np.empty(sizes[k] + 1, dtype=image.dtype)  # the last one is scratch
        n = 0
        for z in range(starts[k, 0], stops[k, 0]):
            for y in range(starts[k, 1], stops[k, 1]):
                names = labels[z, y, starts[k, 2] : stops[k, 2]]
                line = image[z, y, starts[k, 2] : stops[k, 2]]
                for x in range(len(names)):
                    values[n] = line[x]
                    n += names[x] == ids[k]
        total, squares, values = 0.0, 0.0, values[:n]
        for value in values:
            total += value
        mean = total / n
        for value in values:
            squares += (value - mean) ** 2
        totals[k], spreads[k] = total, squares
        ends[k] = values.min(), values.max()
    return totals, spreads, ends


@njit(cache=True, nogil=True)
def outlines(labels, ids, starts, stops, ndim):
    """Return counts for `perimeter`, (n, 3), 0 in 3D, and voxels of the convex hulls, (n,)."""
    counts = np.zeros((len(ids), 3), dtype=np.int64)
    hull = np.zeros(len(ids), dtype=np.int64)
    for k in range(len(ids)):
        if ndim == 2:
            (_, top, left), (_, bottom, right) = starts[k], stops[k]
            inside = np.zeros((bottom - top + 2, right - left + 2), dtype=np.uint8)
            for y in range(top, bottom):
                line, row = labels[starts[k, 0], y, left:right], inside[y - top + 1, 1:-1]
                for x in range(len(line)):
                    row[x] = line[x] == ids[k]
            _count_outline(inside, counts[k])
        hull[k] = hulls.hull_size_px(labels, ids[k], starts[k], stops[k], ndim)
    return counts, hull


@njit(cache=True, nogil=True)
def _count_outline(inside, counts):
    """Count the pixels of the outline, those with a neighbour outside, by their kind.

    `inside` has a margin of one pixel without the object.
    """
    height, width = inside.shape
    outline = np.zeros(inside.shape, dtype=np.uint8)
    for y in range(1, height - 1):
        above, row, below, out = inside[y - 1], inside[y], inside[y + 1], outline[y]
        left, right = row[:-2], row[2:]
        for x in range(1, width - 1):
            out[x] = row[x] & ~(above[x] & below[x] & left[x - 1] & right[x - 1])
    for y in range(1, height - 1):
        above, row, below = outline[y - 1], outline[y], outline[y + 1]
        for x in range(1, width - 1):
            if row[x]:
                beside = above[x] + below[x] + row[x - 1] + row[x + 1]
                corners = above[x - 1] + above[x + 1] + below[x - 1] + below[x + 1]
                kind = KIND[1 + 2 * beside + 10 * corners]
                if kind < 3:
                    counts[kind] += 1
