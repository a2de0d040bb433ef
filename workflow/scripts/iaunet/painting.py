"""Draw the objects that tiles share: where several see a voxel, the deepest one's word counts."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numba import njit

from iaunet.grid import Box, box_shape, intersection, shift, volume
from iaunet.layout import DEPTH_BITS, FAR_PX, Layout
from iaunet.matching import Nodes, Read

SILENT, PART, WHOLE, FILL = 0, 1, 2, 3
"""Roles: draws nothing; draws the voxels that its tile owns; draws the object; draws the voxels
that its tile owns and those in which the owner draws nothing."""
LEFT, OVER_EMPTY, OVER_SILENT = 1, 1, 2
CELL_PX = 1 << 18
"""Voxels that are compared between tiles at a time: what they need stays in the fast memory."""
SMALL_PX = 1 << 12
"""Boxes of fewer voxels are not divided at the faces of tiles."""


def paint(
    box: Box,
    layout: Layout,
    read: Read,
    nodes: Nodes,
    group: np.ndarray,
    role: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Return the objects in a box of the image, and how many of its voxels no tile sees.

    Objects are group + 1, int32; 0 is background. Of the tiles that see a voxel its owner
    decides. Where it sees background, the deepest of those that draw more than they own draws;
    where it sees an object that another tile draws, and draws elsewhere, any trusted one does.

    Parameters
    ----------
    group, role : arrays, one per node
    """
    # Not of zeros: memory that is first written here comes in large pages.
    out = np.empty(box_shape(box), dtype=np.int32)
    painter = _Painter(layout, read, nodes, group, role)
    n_empty = 0
    for cell, tiles in _cells(box, layout, np.arange(len(layout))):
        target = volume(out[shift(cell, [side.start for side in box])])
        n_empty += painter.draw(cell, tiles, target)
    return out, n_empty


class _Painter:
    """Draws boxes of the image; keeps what every box needs."""

    def __init__(
        self, layout: Layout, read: Read, nodes: Nodes, group: np.ndarray, role: np.ndarray
    ) -> None:
        self.layout, self.read = layout, read
        self.of_nodes = nodes, group, role
        self.tables: dict[int, _Table] = {}
        self.scratch = np.empty(0, dtype=np.int32)

    def draw(self, cell: Box, tiles: Sequence[int], out: np.ndarray) -> int:
        """Draw a box that these tiles see, or see in a part; return the voxels none sees."""
        if not tiles:
            out[:] = 0
            return out.size
        parts = [intersection(self.layout.window(tile), cell) for tile in tiles]
        labels = [volume(self.read(tile, part)) for tile, part in zip(tiles, parts, strict=True)]
        tables = [self.table(tile) for tile in tiles]
        everywhere = all(part == cell for part in parts)
        dense = [table.dense for table in tables if table.dense is not None]
        if everywhere and len(dense) == len(tiles) == 1:
            _draw_one(labels[0], dense[0], out)
            return 0
        depths = [_depths(self.layout, tile, cell) for tile in tiles]
        along = [np.stack(depth) for depth in zip(*depths, strict=True)]
        if everywhere and len(dense) == len(tiles) == 2:
            _draw_two(*labels, *dense, *along, out)
            return 0
        drawn = self.several(len(tiles), out.shape)
        if not everywhere:
            drawn[:] = 0
        for table, some, part, drawing in zip(tables, labels, parts, drawn, strict=True):
            inside = shift(part, [side.start for side in cell])
            table.look_up(some, volume(drawing.reshape(box_shape(cell))[inside]))
        return _resolve(drawn, *along, everywhere, out)

    def table(self, tile: int) -> "_Table":
        """Return what the labels of a tile draw."""
        if tile not in self.tables:
            self.tables[tile] = _Table(*self.of_nodes, tile)
        return self.tables[tile]

    def several(self, n_tiles: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array per tile, in memory that is used again."""
        needed = n_tiles * math.prod(shape)
        if len(self.scratch) < needed:
            self.scratch = np.empty(needed, dtype=np.int32)
        return self.scratch[:needed].reshape(n_tiles, *shape)


class _Table:
    """What the labels of one tile draw, a code: four times the object, and flags.

    `OVER_EMPTY`: also where the owner sees background; `OVER_SILENT`: also where the owner sees
    an object that it leaves to others. 0: background; `LEFT`: an object left to others.
    """

    def __init__(self, nodes: Nodes, group: np.ndarray, role: np.ndarray, tile: int) -> None:
        first, end = np.searchsorted(nodes.tile, (tile, tile + 1))
        drawn = 4 * (group[first:end] + 1) + OVER_EMPTY * (role[first:end] >= WHOLE)
        drawn += OVER_SILENT * nodes.trusted[first:end]
        self.ids = nodes.label[first:end]
        self.drawn = np.where(role[first:end] == SILENT, LEFT, drawn).astype(np.int32)
        self.dense = None
        largest = int(self.ids[-1]) if end > first else 0
        if largest < 8 * (end - first) + SMALL_PX:
            self.dense = np.zeros(largest + 1, dtype=np.int32)
            self.dense[self.ids] = self.drawn

    def look_up(self, labels: np.ndarray, out: np.ndarray) -> None:
        """Write what the labels draw."""
        if self.dense is not None:
            _look_up(labels, self.dense, out)
        else:
            _search(labels, self.ids, self.drawn, out)


def _cells(box: Box, layout: Layout, tiles: np.ndarray) -> Iterator[tuple[Box, list[int]]]:
    """Yield boxes that partition a box, and the tiles that meet each: all of it if it is large."""
    here = np.array([(side.start, side.stop) for side in box]).T
    meets = (layout.starts[tiles] < here[1]).all(1) & (layout.stops[tiles] > here[0]).all(1)
    tiles = tiles[meets]
    size = int((here[1] - here[0]).prod())
    axis, at = -1, 0
    if size > SMALL_PX:
        faces = np.concatenate([layout.starts[tiles], layout.stops[tiles]])
        off_middle = np.abs(faces - here.mean(0)) / (here[1] - here[0])
        off_middle[(faces <= here[0]) | (faces >= here[1])] = np.inf
        if off_middle.min(initial=np.inf) < np.inf:
            row, axis = divmod(int(off_middle.argmin()), len(box))
            at = int(faces[row, axis])
        elif size > CELL_PX and len(tiles) > 1:
            axis = int(np.argmax(here[1] - here[0] > 1))
            at = int(here[:, axis].sum()) // 2
    if axis < 0:
        yield box, tiles.tolist()
        return
    for side in (slice(box[axis].start, at), slice(at, box[axis].stop)):
        yield from _cells((*box[:axis], side, *box[axis + 1 :]), layout, tiles)


def _depths(layout: Layout, tile: int, box: Box) -> list[np.ndarray]:
    """Return the depth of the voxels of a box in a tile, along each of three axes; outside -1."""
    found = [np.full(1, FAR_PX, dtype=np.int32)] * (3 - len(box))
    for axis, side in enumerate(box):
        depth = layout.depth_along(tile, axis, np.arange(side.start, side.stop))
        found.append(depth.astype(np.int32))
    return found


@njit(cache=True, nogil=True)
def _draw_one(labels, drawn, out):
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                out[z, y, x] = drawn[labels[z, y, x]] >> 2


@njit(cache=True, nogil=True)
def _draw_two(one, other, one_drawn, other_drawn, depth_z, depth_y, depth_x, out):
    """Do what `_resolve` does, of two tiles that both see the whole box."""
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                first, second = one_drawn[one[z, y, x]], other_drawn[other[z, y, x]]
                if first == second or _over(first, second):
                    value = first
                elif _over(second, first):
                    value = second
                else:
                    here = _depth(depth_z, depth_y, depth_x, 0, z, y, x)
                    there = _depth(depth_z, depth_y, depth_x, 1, z, y, x)
                    value = second if there > here else first
                out[z, y, x] = value >> 2


@njit(cache=True, nogil=True)
def _over(one, other):
    """Return whether one code draws where the owner has the other, which draws nothing."""
    if one <= LEFT or other > LEFT:
        return False
    return one & OVER_SILENT != 0 if other == LEFT else one & OVER_EMPTY != 0


@njit(cache=True, nogil=True)
def _depth(depth_z, depth_y, depth_x, k, z, y, x):
    """Return how deep a voxel lies in the tile k of a box; outside of it -1."""
    least = min(depth_z[k, z], depth_y[k, y], depth_x[k, x])
    total = depth_z[k, z] + depth_y[k, y] + depth_x[k, x]
    return np.int64(-1) if least < 0 else (np.int64(least) << DEPTH_BITS) + total


@njit(cache=True, nogil=True)
def _look_up(labels, drawn, out):
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                out[z, y, x] = drawn[labels[z, y, x]]


@njit(cache=True, nogil=True)
def _search(labels, ids, drawn, out):
    previous = labels.dtype.type(0)
    found = np.int32(0)
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = labels[z, y, x]
                if label != previous:
                    previous = label
                    found = drawn[np.searchsorted(ids, label)] if label != 0 else np.int32(0)
                out[z, y, x] = found


@njit(cache=True, nogil=True)
def _resolve(drawn, depth_z, depth_y, depth_x, everywhere, out):
    """Decide between tiles; where all say the same, depths do not matter."""
    n_empty = 0
    n_tiles = drawn.shape[0]
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                first = drawn[0, z, y, x]
                same = first > LEFT or everywhere
                for k in range(1, n_tiles):
                    same &= drawn[k, z, y, x] == first
                if same:
                    out[z, y, x] = first >> 2
                    continue
                owner, by_owner = np.int64(-1), np.int32(0)
                for k in range(n_tiles):
                    depth = _depth(depth_z, depth_y, depth_x, k, z, y, x)
                    if depth > owner:
                        owner, by_owner = depth, drawn[k, z, y, x]
                n_empty += owner < 0
                deepest, value = np.int64(-1), by_owner
                for k in range(n_tiles):
                    code = drawn[k, z, y, x]
                    if _over(code, by_owner):
                        depth = _depth(depth_z, depth_y, depth_x, k, z, y, x)
                        # Those who draw over everything come before those who fill.
                        depth += np.int64(code & OVER_EMPTY) << 40
                        if depth > deepest:
                            deepest, value = depth, code
                out[z, y, x] = value >> 2
    return n_empty


class Numbers:
    """Final numbers of objects: 1..n in the raster order of their first voxels."""

    def __init__(self, n_groups: int, shape: Sequence[int]) -> None:
        self.shape = (1,) * (3 - len(shape)) + tuple(shape)
        self.first = np.full(n_groups + 1, np.iinfo(np.int64).max)

    def add(self, painted: np.ndarray, box: Box) -> None:
        """Take in a painted box; all boxes together are the image, each once."""
        start = (0,) * (3 - len(box)) + tuple(side.start for side in box)
        _tally(volume(painted), start, self.shape, self.first)

    def of_groups(self) -> np.ndarray:
        """Return the number of each painted value, uint32; 0 for those without a voxel."""
        order = np.argsort(self.first[1:], kind="stable") + 1
        drawn = order[self.first[order] < np.iinfo(np.int64).max]
        number = np.zeros(len(self.first), dtype=np.uint32)
        number[drawn] = np.arange(1, len(drawn) + 1)
        return number


@njit(cache=True, nogil=True)
def _tally(painted, start, shape, first):
    for z in range(painted.shape[0]):
        for y in range(painted.shape[1]):
            line = ((z + start[0]) * shape[1] + y + start[1]) * shape[2] + start[2]
            previous = 0
            for x in range(painted.shape[2]):
                value = painted[z, y, x]
                if value != previous:
                    previous = value
                    if value != 0 and line + x < first[value]:
                        first[value] = line + x


def renumbered(painted: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Return the painted array with the numbers of its values, uint32, in the same memory."""
    _renumber(painted.reshape(-1), number)
    return painted.view(np.uint32)


@njit(cache=True, nogil=True)
def _renumber(painted, number):
    for k in range(len(painted)):
        painted[k] = number[painted[k]]
