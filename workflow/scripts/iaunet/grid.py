"""Tile geometry: which box a tile owns, which box it reads, which batch it belongs to."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the check before any job does without NumPy
    import numpy as np

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Tile:
    """One tile of an image: its raster index on the tile grid and the box it owns."""

    index: int
    core: Box


def grid_shape(shape: Sequence[int], core_px: Sequence[int]) -> tuple[int, ...]:
    """Return the number of tiles along each axis; the last tile may be cut by the image.

    Examples
    --------
    >>> grid_shape((100, 64), (64, 64))
    (2, 1)
    """
    return tuple(-(-length // core) for length, core in zip(shape, core_px, strict=True))


def n_tiles(shape: Sequence[int], core_px: Sequence[int]) -> int:
    """Return how many tiles partition an image."""
    return math.prod(grid_shape(shape, core_px))


def tile(shape: Sequence[int], core_px: Sequence[int], index: int) -> Tile:
    """Return the tile with a raster index (C order on the tile grid)."""
    counts = grid_shape(shape, core_px)
    if not 0 <= index < math.prod(counts):
        raise ValueError(f"tile {index} is not on a grid of {counts}")
    position = []
    rest = index
    for count in reversed(counts):
        rest, here = divmod(rest, count)
        position.append(here)
    core = tuple(
        slice(here * size, min((here + 1) * size, length))
        for here, size, length in zip(reversed(position), core_px, shape, strict=True)
    )
    return Tile(index=index, core=core)


def tiles(shape: Sequence[int], core_px: Sequence[int]) -> Iterator[Tile]:
    """Yield the tiles whose cores partition the image, in raster order."""
    for index in range(n_tiles(shape, core_px)):
        yield tile(shape, core_px, index)


def tiles_meeting(shape: Sequence[int], core_px: Sequence[int], box: Box) -> list[int]:
    """Return the indices of the tiles whose cores meet a box inside the image, ascending."""
    counts = grid_shape(shape, core_px)
    ranges = [
        range(side.start // core, min(count, -(-side.stop // core)))
        for side, core, count in zip(box, core_px, counts, strict=True)
    ]
    found = []
    for position in itertools.product(*ranges):
        index = 0
        for here, count in zip(position, counts, strict=True):
            index = index * count + here
        found.append(index)
    return found


def sizes_of(sizes: Sequence[int], default: Sequence[int]) -> tuple[int, ...]:
    """Return one size per axis of `default`, from sizes for y, x or for z, y, x.

    One setting serves 2D and 3D images: the sizes are those of the last axes, and an axis
    that has none takes the default.

    Examples
    --------
    >>> sizes_of((256, 256), (64, 128, 128))
    (64, 256, 256)
    >>> sizes_of((64, 256, 256), (1024, 1024))
    (256, 256)
    """
    own = tuple(sizes)[-len(default) :]
    return (*tuple(default)[: len(default) - len(own)], *own)


def batches(count: int, n_batches: int) -> list[tuple[int, int]]:
    """Split `count` tiles into contiguous runs of nearly equal length.

    Examples
    --------
    >>> batches(5, 2)
    [(0, 3), (3, 5)]
    >>> batches(1, 2)
    [(0, 1), (1, 1)]
    """
    size, more = divmod(count, n_batches)
    starts = [k * size + min(k, more) for k in range(n_batches + 1)]
    return list(itertools.pairwise(starts))


def grow(box: Box, margin_px: Sequence[int], shape: Sequence[int]) -> Box:
    """Return the box with a margin on every side, cut at the image."""
    return tuple(
        slice(max(0, side.start - margin), min(length, side.stop + margin))
        for side, margin, length in zip(box, margin_px, shape, strict=True)
    )


def shift(box: Box, origin: Sequence[int]) -> Box:
    """Return the box in the coordinates of a window that starts at `origin`."""
    return tuple(
        slice(side.start - start, side.stop - start)
        for side, start in zip(box, origin, strict=True)
    )


def intersection(one: Box, other: Box) -> Box | None:
    """Return the box that two boxes share, or None when they share nothing."""
    both = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return both if all(side.start < side.stop for side in both) else None


def hull(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around some boxes."""
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )


def origin(box: Box) -> tuple[int, ...]:
    """Return the first voxel of a box."""
    return tuple(side.start for side in box)


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the lengths of a box."""
    return tuple(side.stop - side.start for side in box)


def cells_of(box: Box, stride: Sequence[int]) -> Box:
    """Return the box of coarser cells, of `stride` px, that covers a box of voxels."""
    return tuple(
        slice(side.start // step, -(-side.stop // step))
        for side, step in zip(box, stride, strict=True)
    )


def volume(array: "np.ndarray", n_leading: int = 0) -> "np.ndarray":
    """Return an array with three axes after its leading ones."""
    lead, space = array.shape[:n_leading], array.shape[n_leading:]
    return array.reshape(lead + (1,) * (3 - len(space)) + space)
