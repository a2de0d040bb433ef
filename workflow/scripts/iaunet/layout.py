"""Tiles at any positions: what each sees, what it is trusted with, and who owns a voxel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from iaunet.grid import Box

FAR_PX = (1 << 14) - 1
"""Largest depth that is told apart, and that of a voxel below a face of the image."""
DEPTH_BITS = 16
MAX_GAP_PX = 8
"""Tiles farther apart than this are no neighbours."""


@dataclass(frozen=True)
class Layout:
    """Windows of n tiles in one image of d axes.

    A face of a window that is not a face of the image cuts objects, and segmenters err near it:
    a tile is trusted from `margin_px` behind such a face. Of the tiles that see a voxel, the one
    owns it in which it lies deepest: farthest from the nearest cutting face, then by the sum of
    the distances along all axes, then the first. On a regular grid these are the middle lines
    of the overlaps.

    Attributes
    ----------
    starts, stops : int64 arrays, shape (n, d)
        Half-open windows, px of the image.
    shape : tuple of int
        Of the image: all windows lie in it and some reach each of its faces.
    margin_px : tuple of int, one per axis
    """

    starts: np.ndarray
    stops: np.ndarray
    shape: tuple[int, ...]
    margin_px: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts)

    def window(self, tile: int) -> Box:
        """Return what a tile sees."""
        return _box(self.starts[tile], self.stops[tile])

    def trusted(self, tile: int) -> Box:
        """Return the window without the margin at its cutting faces."""
        low, high = self.cutting(tile)
        margin = np.array(self.margin_px)
        return _box(self.starts[tile] + margin * low, self.stops[tile] - margin * high)

    def cutting(self, tile: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which lower and which upper faces of a tile are no faces of the image."""
        return self.starts[tile] > 0, self.stops[tile] < self.shape

    def depths(self, tile: int, points: np.ndarray) -> np.ndarray:
        """Return how deep (n, d) points lie in a tile; outside of it -1.

        The larger value owns; equal values leave it to the tile that stands first.
        """
        along = [self.depth_along(tile, axis, at) for axis, at in enumerate(points.T)]
        least = np.min(along, axis=0)
        return np.where(least >= 0, (least << DEPTH_BITS) + np.sum(along, axis=0), -1)

    def depth_along(self, tile: int, axis: int, at: np.ndarray) -> np.ndarray:
        """Return how far places along an axis lie from the cutting faces of a tile; outside -1."""
        below, above = at - self.starts[tile, axis], self.stops[tile, axis] - 1 - at
        low, high = self.cutting(tile)
        depth = np.full(len(at), FAR_PX)
        if low[axis]:
            depth = np.minimum(depth, below)
        if high[axis]:
            depth = np.minimum(depth, above)
        return np.where((below < 0) | (above < 0), -1, depth)

    def overlaps(self) -> np.ndarray:
        """Return the pairs of tiles that share voxels, shape (pairs, 2), the lower index first."""
        pairs, apart = self._near()
        return pairs[(apart < 0).all(1)]

    def faces(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs that meet at a face without sharing voxels, and the axis across it.

        They abut, or at most `MAX_GAP_PX` lie between them.
        """
        pairs, apart = self._near()
        meet = ((apart < 0).sum(1) == apart.shape[1] - 1) & (apart.max(1, initial=0) >= 0)
        return pairs[meet], apart[meet].argmax(1)

    def facing(self, one: int, other: int, axis: int) -> tuple[Box, Box]:
        """Return the outermost planes of two tiles that meet across `axis`, where both reach."""
        planes = []
        for tile, opposite in ((one, other), (other, one)):
            before = self.starts[tile, axis] < self.starts[opposite, axis]
            at = int(self.stops[tile, axis] - 1 if before else self.starts[tile, axis])
            start = np.maximum(self.starts[one], self.starts[other])
            stop = np.minimum(self.stops[one], self.stops[other])
            start[axis], stop[axis] = at, at + 1
            planes.append(_box(start, stop))
        return planes[0], planes[1]

    def _near(self) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of tiles near each other and, per axis, how many px lie between them.

        Negative: so many px are shared.
        """
        reach = (self.stops - self.starts).max(0) + MAX_GAP_PX
        centres = (self.starts + self.stops) / (2 * reach)
        pairs = cKDTree(centres).query_pairs(1 + 1e-9, p=np.inf, output_type="ndarray")
        pairs = np.sort(pairs, axis=1)
        pairs = pairs[np.lexsort(pairs.T[::-1])].astype(np.int64)
        one, other = pairs.T
        start = np.maximum(self.starts[one], self.starts[other])
        stop = np.minimum(self.stops[one], self.stops[other])
        near = (start - stop <= MAX_GAP_PX).all(1)
        return pairs[near], (start - stop)[near]


def layout(
    starts: Sequence[Sequence[int]],
    shapes: Sequence[Sequence[int]],
    margin_px: Sequence[int] | None = None,
) -> Layout:
    """Return the layout of tiles of given places and shapes.

    Parameters
    ----------
    margin_px : one per axis; None: a quarter of the smallest overlap of neighbours along it,
        so that the middle half of every overlap is trusted by both.

    Raises
    ------
    ValueError
        No tile, a negative place, or a margin that leaves neighbours no common ground.

    Examples
    --------
    >>> found = layout([(0, 0), (0, 48)], [(64, 64), (64, 64)])
    >>> found.shape, found.margin_px, found.trusted(0)
    ((64, 112), (0, 4), (slice(0, 64, None), slice(0, 60, None)))
    """
    first = np.array(starts, dtype=np.int64)
    if not len(first) or (first < 0).any():
        raise ValueError("needs at least one tile, at places of 0 or more")
    stops = first + np.array(shapes, dtype=np.int64)
    shape = tuple(int(length) for length in stops.max(0))
    plain = Layout(first, stops, shape, (0,) * len(shape))
    shared = _smallest_overlaps(plain)
    if margin_px is None:
        margin_px = [int(length) // 4 for length in shared]
    most = np.maximum(shared - 1, 0) // 2
    for axis in np.flatnonzero(np.array(margin_px) > most).tolist():
        raise ValueError(
            f"a margin of {margin_px[axis]} px along axis {axis} of {len(shape)}; the smallest "
            f"overlap there is {shared[axis]} px, needs at most {most[axis]}"
        )
    return Layout(first, stops, shape, tuple(int(px) for px in margin_px))


def _smallest_overlaps(plain: Layout) -> np.ndarray:
    """Return, per axis, the smallest overlap of tiles that lie beside each other along it."""
    found = np.zeros(len(plain.shape), dtype=np.int64)
    pairs = plain.overlaps()
    one, other = pairs.T
    start = np.maximum(plain.starts[one], plain.starts[other])
    stop = np.minimum(plain.stops[one], plain.stops[other])
    # Beside each other: neither contains the other along the axis.
    beside = (plain.starts[one] != plain.starts[other]) & (plain.stops[one] != plain.stops[other])
    for axis in range(len(found)):
        lengths = (stop - start)[beside[:, axis], axis]
        found[axis] = lengths.min() if len(lengths) else 0
    return found


def _box(start: np.ndarray, stop: np.ndarray) -> Box:
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
