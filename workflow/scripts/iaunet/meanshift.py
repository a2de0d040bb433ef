"""Mean-shift of voxels that votes and embeddings place in one space, made local.

The clustering of the discriminative loss (De Brabandere et al., arXiv 1708.02551, section 3.2:
flat kernel, modes, thresholds around them) takes one object after another, anywhere in the
image. Here every voxel moves `STEPS` times, all at once, over points that stay where they are;
the densest mode of each neighbourhood is a seed; a voxel belongs to the nearest seed. No result
depends on the order of voxels, and none on voxels farther away than `reach`.

A point is a row of integers: position z, y, x in 1/16 px, then the embedding in 1/1024. Two
points are neighbours when their weighted squared distance is at most `Kernel.most` and they are
at most `Kernel.window` apart along every axis of the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from iaunet import fixedpoint, kernels

STEPS = 5
COST_BITS = 40
UNIT = fixedpoint.SCALE["off"]
VECTORS = ("hybrid", "spatial", "conv")
"""What is compared: vote and embedding; the vote alone; the embedding alone, of voxels that
are near one another."""


@dataclass(frozen=True)
class Kernel:
    """What makes two points neighbours.

    Attributes
    ----------
    position, channel : cost of a squared distance of 1/16 px, and of 1/1024 of the embedding.
    most : largest cost.
    window : largest distance along any axis, 1/16 px.
    """

    position: int
    channel: int
    most: int
    window: int

    @classmethod
    def of(cls, vectors: str, bandwidth: float, unit_px: float, window_px: int) -> "Kernel":
        """Return the kernel of radius `bandwidth`, in units of the embedding or `unit_px` px."""
        position = 0 if vectors == "conv" else round(2**COST_BITS / (UNIT * unit_px) ** 2)
        channel = 2**COST_BITS // fixedpoint.SCALE["emb"] ** 2
        most = round(bandwidth**2 * 2**COST_BITS)
        window = UNIT * window_px
        if position:
            window = min(window, math.isqrt(most // position))
        return cls(position, channel, most, window)

    def near(self, size: int) -> tuple[np.ndarray, int, int]:
        """Return what the compiled loops need to compare points of `size` columns."""
        weights = np.full(size, self.channel, dtype=np.int64)
        weights[:3] = self.position
        return weights, self.most, self.window

    @property
    def sigma_px(self) -> float:
        """Bandwidth of the Gaussian that is 1/2 at the end of the window."""
        return self.window / UNIT / math.sqrt(2 * math.log(2))


def reach(kernel: Kernel, off: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how far a window must look, px per axis: to see objects whole, and to make them.

    With w the window of the kernel and m the largest offset (`off`, 1/16 px), x the position of
    a voxel and u its point, so that ``|u - x| <= m``:

    * voxels of an object have points within w of its mode: they are at most ``2 (w + m)`` apart.
    * a step moves a point by at most w, since all it is the mean of are within w. A mode at y is
      a seed unless one within w of it has a better key; of that one, at y', ``|y' - y| <= w``, the
      k-th last point on its way is within k w of y', and is the mean of points within
      (k + 1) w of it. So all of it follows from the points within ``(STEPS + 2) w`` of y, and y
      is within w of the voxel that it takes: these voxels are within ``2 m + (STEPS + 3) w``.
      Nor can a mode that was computed from fewer points than it has come near y: the last
      right point on its way lacks one within w of it, which is then within ``(STEPS + 2) w`` of y.
    """
    far = [(kernel.window, int(most)) for most in off]
    whole = tuple(2 * (window + most) // UNIT for window, most in far)
    made = tuple((2 * most + (STEPS + 3) * window) // UNIT for window, most in far)
    return whole, made


def modes(points: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Return where points are after `STEPS`, each place once, and how many points are near it.

    Parameters
    ----------
    points : (n, 3 + E) int64

    Returns
    -------
    (m, 3 + E) int64, rows sorted; (m,) int64
    """
    bins = kernels.bins(points[:, :3], kernel.window)
    ordered = points[bins[0]]
    near = kernel.near(points.shape[1])
    here = points
    for _ in range(STEPS):
        # Points with the same neighbours have the same mean: soon there are few places.
        here = np.unique(_means(here, ordered, *bins[1:], *near)[0], axis=0)
    return here, _means(here, ordered, *bins[1:], *near)[1]


def seeds(modes: np.ndarray, density: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Return the modes that no better one is near: a larger density, else an earlier row."""
    rank = np.empty(len(modes), dtype=np.int64)
    rank[np.argsort(-density, kind="stable")] = np.arange(len(modes))
    bins = kernels.bins(modes[:, :3], kernel.window)
    return modes[~_beaten(modes, rank, *bins, *kernel.near(modes.shape[1]))]


def owners(points: np.ndarray, seeds: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Return for every point the nearest seed, of equals the first; -1 where none is near."""
    bins = kernels.bins(seeds[:, :3], kernel.window)
    return _nearest(points, seeds, *bins, *kernel.near(points.shape[1]))


@njit(cache=True, nogil=True)
def _runs(point, start, low, cell, counts, runs):
    """Write which places of the binned points may be near a point; return how many runs."""
    n = 0
    z = (point[0] - low[0]) // cell[0]
    y = (point[1] - low[1]) // cell[1]
    x = (point[2] - low[2]) // cell[2]
    for bz in range(max(z - 1, 0), min(z + 2, counts[0])):
        for by in range(max(y - 1, 0), min(y + 2, counts[1])):
            row = (bz * counts[1] + by) * counts[2]
            first, last = max(x - 1, 0), min(x + 2, counts[2])
            if first < last:
                runs[n, 0] = start[row + first]
                runs[n, 1] = start[row + last]
                n += 1
    return n


@njit(cache=True, nogil=True)
def _cost(point, others, k, weights, most, window):
    """Return the weighted squared distance to one of the others; above `most`, it may be less."""
    cost = np.int64(0)
    for axis in range(3):
        far = abs(point[axis] - others[k, axis])
        if far > window:
            return most + 1
        cost += far * far * weights[axis]
    for column in range(3, len(weights)):
        if cost > most:
            return cost
        far = point[column] - others[k, column]
        cost += far * far * weights[column]
    return cost


@njit(cache=True, nogil=True)
def _means(points, others, start, low, cell, counts, weights, most, window):
    """Return the mean, rounded down, and the number of the others near each point.

    `others` in the order of their bins; a point without any near stays.
    """
    means = points.copy()
    count = np.zeros(len(points), dtype=np.int64)
    total = np.empty(points.shape[1], dtype=np.int64)
    runs = np.empty((9, 2), dtype=np.int64)
    for p in range(len(points)):
        total[:] = 0
        for run in range(_runs(points[p], start, low, cell, counts, runs)):
            for k in range(runs[run, 0], runs[run, 1]):
                if _cost(points[p], others, k, weights, most, window) <= most:
                    count[p] += 1
                    for column in range(len(total)):
                        total[column] += others[k, column]
        if count[p] > 0:
            for column in range(len(total)):
                means[p, column] = total[column] // count[p]
    return means, count


@njit(cache=True, nogil=True)
def _beaten(modes, rank, order, start, low, cell, counts, weights, most, window):
    """Tell near which modes there is one of a smaller rank."""
    beaten = np.zeros(len(modes), dtype=np.bool_)
    runs = np.empty((9, 2), dtype=np.int64)
    for p in range(len(modes)):
        for run in range(_runs(modes[p], start, low, cell, counts, runs)):
            for place in range(runs[run, 0], runs[run, 1]):
                k = order[place]
                if rank[k] < rank[p] and (_cost(modes[p], modes, k, weights, most, window) <= most):
                    beaten[p] = True
                    break
            if beaten[p]:
                break
    return beaten


@njit(cache=True, nogil=True)
def _nearest(points, modes, order, start, low, cell, counts, weights, most, window):
    """Return the mode of least cost, then of least index, near each point; -1: none."""
    owner = np.full(len(points), -1, dtype=np.int64)
    runs = np.empty((9, 2), dtype=np.int64)
    for p in range(len(points)):
        least = most + 1
        for run in range(_runs(points[p], start, low, cell, counts, runs)):
            for place in range(runs[run, 0], runs[run, 1]):
                k = order[place]
                cost = _cost(points[p], modes, k, weights, most, window)
                if cost < least or (cost == least and cost <= most and k < owner[p]):
                    least = cost
                    owner[p] = k
    return owner
