"""Which parts of an image are worth a look: typical, crowded, unsure, wrong.

Tables and small arrays in, positions and boxes out; the same input gives the same choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from iaunet.grid import Box

# Enough objects to find the crowded ones; more only cost time.
MAX_SAMPLE = 5000


def equivalent_diameter(size: float, spacing: Sequence[float]) -> tuple[float, ...]:
    """Return the diameter, in pixels of each axis, of a disc or ball of `size` pixels."""
    ndim = len(spacing)
    volume = size * float(np.prod(spacing))
    diameter = 2 * np.sqrt(volume / np.pi) if ndim == 2 else (6 * volume / np.pi) ** (1 / 3)
    return tuple(float(diameter / step) for step in spacing)


def window(centre: Sequence[float], sides: Sequence[float], shape: Sequence[int]) -> Box:
    """Return a box of given sides around a point, moved inside the image, not larger than it.

    Examples
    --------
    >>> window((2, 50), (10, 10), (40, 60))
    (slice(0, 10, None), slice(45, 55, None))
    """
    box = []
    for middle, side, length in zip(centre, sides, shape, strict=True):
        size = int(np.clip(round(side), 1, length))
        start = int(np.clip(round(middle - size / 2), 0, length - size))
        box.append(slice(start, start + size))
    return tuple(box)


def neighbour_counts(
    centres: np.ndarray, spacing: Sequence[float], radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Count the objects near each of at most `MAX_SAMPLE` objects.

    Returns
    -------
    sample, counts : int arrays
        Rows of `centres` that were looked at, and the objects within `radius` of each.
    """
    points = centres * np.asarray(spacing)
    sample = np.unique(np.linspace(0, len(points) - 1, min(len(points), MAX_SAMPLE)).astype(int))
    counts = KDTree(points).query_ball_point(points[sample], radius, return_length=True)
    return sample, np.asarray(counts) - 1


def typical_and_crowded(
    centres: np.ndarray, sizes: np.ndarray, spacing: Sequence[float], radius: float
) -> tuple[int, int]:
    """Return the rows of an object in ordinary surroundings and of one in the densest."""
    sample, counts = neighbour_counts(centres, spacing, radius)
    crowded = int(sample[np.argmax(counts)])
    odd = np.abs(counts - np.median(counts)) / max(1.0, float(np.median(counts)))
    median_size = float(np.median(sizes))
    odd = odd + np.abs(sizes[sample] - median_size) / max(1.0, median_size)
    return int(sample[np.argmin(odd)]), crowded


@dataclass(frozen=True)
class Mistakes:
    """Differences of two labellings of one window, as ids (int arrays) at IoU 0.5."""

    missed: np.ndarray
    false: np.ndarray
    merged: np.ndarray
    split: np.ndarray

    @property
    def count(self) -> int:
        """Number of wrong objects."""
        return len(self.missed) + len(self.false)


def mistakes(true: np.ndarray, predicted: np.ndarray, inner: Box) -> Mistakes:
    """Compare two labellings of one window and list what is wrong with objects mostly in `inner`.

    An object is missed (false) when no object of the other labelling shares half of their
    union. A prediction is merged when it holds half of each of two true objects or more, a
    true object is split when it holds half of each of two predictions or more.
    """
    (in_true_runs, in_predicted_runs), lengths = _runs(true, predicted)
    true_ids, true_index = np.unique(in_true_runs, return_inverse=True)
    predicted_ids, predicted_index = np.unique(in_predicted_runs, return_inverse=True)
    shape = (len(true_ids), len(predicted_ids))
    cells, where = np.unique(
        np.ravel_multi_index((true_index, predicted_index), shape), return_inverse=True
    )
    shared = np.bincount(where, lengths)
    rows, columns = np.unravel_index(cells, shape)
    true_area = np.bincount(rows, shared, minlength=shape[0])
    predicted_area = np.bincount(columns, shared, minlength=shape[1])
    real = (true_ids[rows] != 0) & (predicted_ids[columns] != 0)
    rows, columns, shared = rows[real], columns[real], shared[real]
    matched = shared / (true_area[rows] + predicted_area[columns] - shared) >= 0.5
    in_prediction = np.bincount(columns[shared >= 0.5 * true_area[rows]], minlength=shape[1])
    in_true = np.bincount(rows[shared >= 0.5 * predicted_area[columns]], minlength=shape[0])
    missed = np.setdiff1d(true_ids[true_ids != 0], true_ids[rows[matched]])
    false = np.setdiff1d(predicted_ids[predicted_ids != 0], predicted_ids[columns[matched]])
    of_true, of_predicted = _mostly_in(true, inner), _mostly_in(predicted, inner)
    return Mistakes(
        np.intersect1d(missed, of_true),
        np.intersect1d(false, of_predicted),
        np.intersect1d(predicted_ids[in_prediction >= 2], of_predicted),
        np.intersect1d(true_ids[in_true >= 2], of_true),
    )


def _runs(*labels: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the values and the lengths of the runs in which no labelling changes, C order."""
    flat = [one.ravel() for one in labels]
    change = np.zeros(flat[0].size, bool)
    change[:1] = True
    for one in flat:
        change[1:] |= one[1:] != one[:-1]
    starts = np.flatnonzero(change)
    return tuple(one[starts] for one in flat), np.diff(starts, append=flat[0].size)


def _mostly_in(labels: np.ndarray, inner: Box) -> np.ndarray:
    """Return the ids that have at least half of their pixels in a box."""
    ids, sizes = _sizes(labels)
    inside, part = _sizes(labels[inner])
    return inside[2 * part >= sizes[np.searchsorted(ids, inside)]]


def _sizes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (values,), lengths = _runs(labels)
    ids, where = np.unique(values, return_inverse=True)
    return ids, np.bincount(where, lengths)


def candidates(shape: Sequence[int], sides: Sequence[float], most: int) -> tuple[list[Box], int]:
    """Return at most `most` windows spread over the image, and how many would cover it."""
    counts = [
        max(1, -(-length // max(1, round(side)))) for length, side in zip(shape, sides, strict=True)
    ]
    total = int(np.prod(counts))
    chosen = np.unique(np.linspace(0, total - 1, min(total, most)).astype(np.int64))
    boxes = []
    for position in zip(*np.unravel_index(chosen, counts), strict=True):
        centre = [
            (here + 0.5) * length / count
            for here, length, count in zip(position, shape, counts, strict=True)
        ]
        boxes.append(window(centre, sides, shape))
    return boxes, total
