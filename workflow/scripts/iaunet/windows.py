"""Which tiles are labelled together, so that little around them is looked at more than once."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from iaunet.grid import Tile

READING = 0.4
"""Share of the time; Zarr reads for one thread after the other."""


def gathered(
    tiles: Sequence[Tile],
    shape: Sequence[int],
    core_px: Sequence[int],
    margin_px: Sequence[int],
    read_px: Sequence[int],
    *,
    most_voxels: int,
    threads: int,
) -> list[list[Tile]]:
    """Gather tiles into windows, such that they take least time.

    A window is the smallest box around its tiles, and a margin, cut at the image. It has at most
    `most_voxels`, or as many as the largest around one tile. Tried are all ways to halve, again
    and again, what the tiles span along each axis. Reading is thought to take as long as all
    voxels that are read, labelling as those of a thread; of two ways that take as long the one
    with fewer windows is taken.

    Parameters
    ----------
    shape, core_px : of the image and of the tiles.
    margin_px, read_px : how far around its tiles a window labels, and how far it reads.

    Returns
    -------
    The tiles of every window; windows, and tiles in them, in raster order.

    Examples
    --------
    >>> from iaunet import grid
    >>> row = list(grid.tiles((8, 64), (8, 8)))
    >>> found = gathered(row, (8, 64), (8, 8), (4, 4), (4, 4), most_voxels=200, threads=1)
    >>> [len(together) for together in found]
    [2, 2, 2, 2]
    """
    if not tiles:
        return []
    first = np.array([[side.start for side in tile.core] for tile in tiles])
    end = np.array([[side.stop for side in tile.core] for tile in tiles])

    def sizes(first: np.ndarray, end: np.ndarray, margin_px: Sequence[int]) -> np.ndarray:
        low, high = np.maximum(first - margin_px, 0), np.minimum(end + margin_px, shape)
        return (high - low).prod(axis=1)

    most_voxels = max(most_voxels, int(sizes(first, end, margin_px).max()))
    place = first // core_px
    place -= place.min(axis=0)
    best = None
    for side in itertools.product(*(_halvings(n) for n in place.max(axis=0) + 1)):
        keys = np.ravel_multi_index(tuple((place // side).T), tuple(place.max(axis=0) // side + 1))
        order = np.argsort(keys, kind="stable")
        start = np.flatnonzero(np.diff(keys[order], prepend=-1))
        low = np.minimum.reduceat(first[order], start)
        high = np.maximum.reduceat(end[order], start)
        voxels = sizes(low, high, margin_px)
        if voxels.max() > most_voxels:
            continue
        labelling = max(voxels.sum() / threads, voxels.max())
        reading = sizes(low, high, read_px).sum()
        took = READING * reading + (1 - READING) * labelling, len(voxels)
        if best is None or took < best[0]:
            best = took, np.split(order, start[1:])
    return [[tiles[k] for k in together] for together in best[1]]


def _halvings(n: int) -> list[int]:
    """Return a length, half of it, a quarter and so on, rounded up, to 1.

    Examples
    --------
    >>> _halvings(9)
    [9, 5, 3, 2, 1]
    """
    parts = [2**k for k in range(math.ceil(math.log2(n)) + 1)]
    return [-(-int(n) // k) for k in parts]
