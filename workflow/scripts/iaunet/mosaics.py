"""Tiles at recorded positions as one plane, of which windows are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from iaunet.grid import Box

LARGEST_SPREAD = 64


@dataclass(frozen=True)
class Mosaic:
    """Tiles of equal size; where they overlap, the later one is seen, where none is, 0.

    Attributes
    ----------
    corners_px : int array, shape (n, 2)
        First row and column of each tile; the smallest of both are 0.
    tile_px : tuple of int
        Height and width of a tile.
    """

    corners_px: np.ndarray
    tile_px: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the plane."""
        height, width = self.corners_px.max(axis=0) + self.tile_px
        return int(height), int(width)

    def fill(self, out: np.ndarray, window: Box, tile: Callable[[int], np.ndarray]) -> None:
        """Write a window (rows, columns) into `out`; calls `tile` for those within it only.

        `tile` returns the values of one tile, axes y, x and those of `out` after them.
        """
        out[...] = 0
        start = np.array([side.start for side in window])
        stop = np.array([side.stop for side in window])
        low = np.maximum(self.corners_px, start)
        high = np.minimum(self.corners_px + self.tile_px, stop)
        for index in np.flatnonzero((low < high).all(axis=1)):
            here = low[index], high[index]
            target = _box(here, start)
            out[target] = tile(int(index))[_box(here, self.corners_px[index])]


def _box(corners: tuple[np.ndarray, np.ndarray], origin: np.ndarray) -> Box:
    return tuple(slice(int(a - o), int(b - o)) for a, b, o in zip(*corners, origin, strict=True))


def by_stage(
    positions: np.ndarray,
    step: Sequence[float],
    tile_px: tuple[int, int],
    *,
    flipped: Sequence[bool],
    swapped: bool,
) -> Mosaic:
    """Return the mosaic of tiles at positions of the stage, to the nearest pixel.

    Parameters
    ----------
    positions : float array, shape (n, 2)
        y and x of each tile, in the unit of `step`.
    step : pair of float
        Distance of two pixels along y and x of the image.
    tile_px : pair of int
    flipped : pair of bool
        The stage's y, its x runs against the image.
    swapped : bool
        The stage's x, after it was flipped, is the image's y.

    Raises
    ------
    ValueError
        The positions make no plane: not finite, all the same, or spread over more than 64 times
        the tiles' area.
    """
    places = np.where(flipped, -positions, positions)
    if swapped:
        places = places[:, ::-1]
    if not np.isfinite(places).all() or not (np.isfinite(step).all() and min(step) > 0):
        raise ValueError("positions or pixel sizes are no numbers")
    places = (places - places.min(axis=0)) / step
    if len(np.unique(places, axis=0)) < 2:
        raise ValueError(f"the {len(places)} tiles have one position")
    area = np.prod(places.max(axis=0) + tile_px)
    if area > LARGEST_SPREAD * len(places) * np.prod(tile_px, dtype=float):
        raise ValueError(f"the {len(places)} tiles lie too far apart")
    return Mosaic(np.floor(places + 0.5).astype(np.int64), tile_px)
