"""One image, two grids: its own, and the one on which its objects have a size the model knows.

Both grids cover the same rectangle, so a voxel of one has a place on the other that depends on
nothing but the two shapes. Whatever window is resampled, and in whatever order, a voxel gets
the same bits: sums run over a fixed number of neighbours in a fixed order.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from iaunet.grid import Box

LARGEST_FACTOR = 8.0
"""An image is neither enlarged nor shrunk by more than this along an axis."""
TOLERANCE = 1.15
"""How far outside the model's range a diameter may lie before an image is resampled."""


def diameters(labels: np.ndarray) -> np.ndarray:
    """Return how long every object is along every axis: that of the ellipsoid of equal variance.

    Parameters
    ----------
    labels : int array; 0 is background.

    Returns
    -------
    float array, shape (n, axes)
        px, objects by ascending id. A voxel counts with its own width.
    """
    where = np.nonzero(labels)
    _, owner, size = np.unique(labels[where], return_inverse=True, return_counts=True)
    if not len(size):
        return np.zeros((0, labels.ndim))
    spread = []
    for at in where:
        mean = np.bincount(owner, at) / size
        spread.append(np.bincount(owner, (at - mean[owner]) ** 2) / size + 1 / 12)
    return 2 * np.sqrt((labels.ndim + 2) * np.stack(spread, axis=1))


def median_diameter(found: np.ndarray) -> list[float]:
    """Return the median diameter per axis; y and x share the mean of their logarithms.

    Parameters
    ----------
    found : (n, axes) px, at least one object.
    """
    middle = np.median(found, axis=0)
    plane = math.sqrt(float(middle[-1] * middle[-2]))
    return [*map(float, middle[:-2]), plane, plane]


def spacing_factors(spacing: Sequence[float], trained: Sequence[float]) -> tuple[float, ...]:
    """Return by what to enlarge every axis to the spacing of the training; nearly equal is equal.

    Examples
    --------
    >>> spacing_factors((0.02, 0.0105), (0.01, 0.01))
    (2.0, 1.0)
    """
    found = []
    for here, there in zip(spacing, trained, strict=True):
        near = 1 / TOLERANCE <= here / there <= TOLERANCE
        found.append(1.0 if near else _bounded(here / there))
    return tuple(found)


def factors(
    diameter: Sequence[float], smallest: Sequence[float], largest: Sequence[float]
) -> tuple[float, ...]:
    """Return `factor` for every axis."""
    return tuple(map(factor, diameter, smallest, largest))


def factor(diameter: float, low: float, high: float) -> float:
    """Return by what to enlarge an axis so that a diameter comes to lie inside a range.

    1 when it lies there, or nearly. Otherwise it comes to the middle of the range (of its
    logarithm), so that the objects around the median lie inside as well.

    Parameters
    ----------
    diameter : px, median of the objects.
    low, high : px, the range of the model.

    Examples
    --------
    >>> factor(20, 12, 48), factor(6, 12, 48), factor(96, 12, 48)
    (1.0, 4.0, 0.25)
    """
    if low / TOLERANCE <= diameter <= high * TOLERANCE:
        return 1.0
    return _bounded(math.sqrt(low * high) / diameter)


def _bounded(value: float) -> float:
    return min(max(value, 1 / LARGEST_FACTOR), LARGEST_FACTOR)


def grid_shape(shape: Sequence[int], factors: Sequence[float]) -> tuple[int, ...]:
    """Return the shape of the other grid.

    Examples
    --------
    >>> grid_shape((10, 300, 400), (1.0, 0.25, 0.25))
    (10, 75, 100)
    """
    return tuple(max(1, round(n * f)) for n, f in zip(shape, factors, strict=True))


def resampled(
    read: Callable[[Box], np.ndarray], shape: Sequence[int], to: Sequence[int], box: Box
) -> np.ndarray:
    """Return a box of an image on another grid: linear, with antialiasing where it shrinks.

    The kernel is a triangle as wide as two voxels of the coarser grid.

    Parameters
    ----------
    read : box of the image -> float32 array.
    shape, to : of the image, and of the other grid.
    box : on the other grid.

    Returns
    -------
    float32 array
        Of the shape of the box.
    """
    taps = [_taps(n, m, side.start, side.stop) for n, m, side in zip(shape, to, box, strict=True)]
    source = tuple(slice(int(at.min()), int(at.max()) + 1) for at, _ in taps)
    values = np.asarray(read(source), dtype=np.float32)
    for axis, (at, weights) in enumerate(taps):
        if at.shape[1] == 1:
            continue
        first = source[axis].start
        column = [1] * values.ndim
        column[axis] = -1
        total = np.zeros(1, np.float32)
        for k in range(at.shape[1]):
            total = total + values.take(at[:, k] - first, axis) * weights[:, k].reshape(column)
        values = total
    return values


def nearest(shape: Sequence[int], to: Sequence[int], box: Box) -> list[np.ndarray]:
    """Return, per axis, the index on grid `shape` of every voxel of a box on grid `to`.

    Examples
    --------
    >>> nearest((2,), (6,), (slice(1, 5),))
    [array([0, 0, 1, 1])]
    """
    voxels = [np.arange(side.start, side.stop, dtype=np.int64) for side in box]
    return under(voxels, to, shape)


def under(
    voxels: Sequence[np.ndarray], shape: Sequence[int], to: Sequence[int]
) -> list[np.ndarray]:
    """Return, per axis, the voxel of grid `to` under the middle of each voxel of grid `shape`."""
    return [((2 * at + 1) * m) // (2 * n) for at, n, m in zip(voxels, shape, to, strict=True)]


def _taps(n: int, m: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of an axis of n that make voxels start to stop of m, and weights.

    int64 and float32 arrays (stop - start, taps); the taps of a voxel ascend.
    """
    if n == m:
        return np.arange(start, stop)[:, None], np.ones((stop - start, 1), np.float32)
    ratio = n / m
    reach = max(1.0, ratio)
    middle = (np.arange(start, stop) + 0.5) * ratio - 0.5
    first = np.floor(middle - reach).astype(np.int64) + 1
    at = first[:, None] + np.arange(math.ceil(2 * reach))
    weights = np.clip(1 - np.abs(at - middle[:, None]) / reach, 0, None)
    weights[(at < 0) | (at >= n)] = 0
    weights /= weights.sum(1, keepdims=True)
    return at.clip(0, n - 1), weights.astype(np.float32)
