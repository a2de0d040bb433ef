"""Rules that make one label array of the labels of tiles: the peers', and ours.

Each takes the tiles, their windows, their cores and the shape of the image. Peers that know no
overlap get the tiles cropped to their cores. What they are, and where their code is:

- offset: every piece is an object; Fractal's default.
- face touch: pieces that touch at a face are one object; the functions of dask-image 2026.5.0.
- face IoU: pieces whose cut faces have an IoU above 0.3; BiaPy 3.7's rule, written anew.
- Cellpose: face touch after the faces shrank; its own functions, of the installed file
  ``cellpose/contrib/distributed_segmentation.py``, since to import it needs a cluster's packages.
- StarDist: the one tile that is responsible for an object draws it; its own ``Block``.
- ours: `iaunet.reconcile.reconciled`.
"""

import ast
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from iaunet import metrics, reconcile
from iaunet.grid import Box, shift

Tiles = Sequence[np.ndarray]
LEAST_FACE_IOU = 0.3
CELLPOSE_FUNCTIONS = {
    "block_faces",
    "adjacent_faces",
    "shrink_labels",
    "block_face_adjacency_graph",
    "determine_merge_relabeling",
}


def ours(
    tiles: Tiles, windows: Sequence[Box], cores: Sequence[Box], shape: Sequence[int]
) -> np.ndarray:
    """Return the labels as this repository makes them."""
    found = reconcile.reconciled(tiles, [[side.start for side in window] for window in windows])
    missing = [(0, length - seen) for length, seen in zip(shape, found.shape, strict=True)]
    return np.pad(found, missing) if np.any(missing) else found


def offset(
    tiles: Tiles, windows: Sequence[Box], cores: Sequence[Box], shape: Sequence[int]
) -> np.ndarray:
    """Return the labels of the cores, each piece an object."""
    pieces, _ = numbered(tiles, windows, cores)
    return assembled(pieces, cores, shape)


def face_touch(
    tiles: Tiles, windows: Sequence[Box], cores: Sequence[Box], shape: Sequence[int]
) -> np.ndarray:
    """Return pieces that touch at a face as one object, by dask-image."""
    import dask
    import dask.array as da
    from dask_image.ndmeasure._utils import _label

    grid = grid_of(cores)
    pieces, n_pieces = numbered(tiles, windows, cores, _label.LABEL_DTYPE)
    nested = np.empty(grid.shape, dtype=object)
    for place, tile in np.ndenumerate(grid):
        nested[place] = da.from_array(pieces[tile], chunks=-1)
    blocks = da.block(nested.tolist())
    graph = _label.label_adjacency_graph(blocks, None, n_pieces)
    merged = _label.relabel_blocks(blocks, _label.connected_components_delayed(graph))
    with dask.config.set(scheduler="synchronous"):
        found = merged.compute()
    if found.shape == tuple(shape):
        return found
    return assembled(parted(found, cores, grid), cores, shape)


def face_iou(
    tiles: Tiles, windows: Sequence[Box], cores: Sequence[Box], shape: Sequence[int]
) -> np.ndarray:
    """Return pieces whose cut faces overlap enough as one object."""
    pieces, n_pieces = numbered(tiles, windows, cores)
    links = [np.zeros((0, 2), dtype=np.int64)]
    for axis, one, other in neighbours(grid_of(cores)):
        upper = np.take(pieces[one], -1, axis=axis)
        lower = np.take(pieces[other], 0, axis=axis)
        found = metrics.overlap(upper, lower)
        links.append(found.pairs[metrics.iou(found) > LEAST_FACE_IOU].astype(np.int64))
    one, other = np.concatenate(links).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(n_pieces + 1, n_pieces + 1))
    object_of = connected_components(graph, directed=False)[1]
    return assembled([object_of[piece] for piece in pieces], cores, shape)


def cellpose(
    tiles: Tiles, windows: Sequence[Box], cores: Sequence[Box], shape: Sequence[int]
) -> np.ndarray:
    """Return pieces whose shrunk faces touch as one object."""
    functions = functions_of_cellpose()
    pieces, _ = numbered(tiles, windows, cores)
    grid = grid_of(cores)
    indices = list(np.ndindex(*grid.shape))
    faces = [functions["block_faces"](pieces[grid[index]]) for index in indices]
    used = np.unique(np.concatenate([np.unique(piece) for piece in pieces]))
    object_of = functions["determine_merge_relabeling"](indices, faces, used[used > 0])
    return assembled([object_of[piece] for piece in pieces], cores, shape)


def functions_of_cellpose() -> dict[str, Callable]:
    """Return the functions that merge, compiled from the installed source."""
    import dask_image.ndmeasure._utils._label

    folder = Path(importlib.util.find_spec("cellpose").origin).parent
    source = folder / "contrib" / "distributed_segmentation.py"
    module = ast.parse(source.read_text())
    module.body = [
        node
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name in CELLPOSE_FUNCTIONS
    ]
    names = {"np": np, "scipy": scipy, "dask_image": dask_image}
    exec(compile(module, str(source), "exec"), names)
    return names


def stardist(
    tiles: Tiles, windows: Sequence[Box], cores: Sequence[Box], shape: Sequence[int]
) -> np.ndarray:
    """Return every object as the tile drew it that is responsible; raises for large objects."""
    from stardist.big import BlockND

    grid = grid_of(cores)
    chains = [chain(windows, grid, axis) for axis in range(grid.ndim)]
    found = np.zeros(shape, dtype=np.int64)
    n_objects = 0
    for place, tile in np.ndenumerate(grid):
        sides = [blocks[at] for blocks, at in zip(chains, place, strict=True)]
        block = BlockND(int(tile), sides, "ZYX"[-grid.ndim :])
        kept = block.filter_objects(block.crop_context(tiles[tile]).astype(np.int64), None)
        kept[kept > 0] += n_objects
        n_objects = max(n_objects, int(kept.max(initial=0)))
        block.write(found, kept)
    return found


def chain(windows: Sequence[Box], grid: np.ndarray, axis: int) -> list:
    """Return StarDist's blocks of one axis that read just these windows.

    ``Block.cover`` would read others. As context, which it does not trust, StarDist is given
    just as many pixels as a segmenter of the condition `border` errs in.
    """
    from stardist.big import Block

    line = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)[:, 0]
    sides = [windows[tile][axis] for tile in line]
    shared = min([a.stop - b.start for a, b in itertools.pairwise(sides)], default=0)
    context = -(-max(shared, 0) // 6)
    first = block = Block(sides[0].stop - sides[0].start, 0, 0, None)
    for side, after in zip(sides, [*sides[1:], None], strict=True):
        block.size = side.stop - side.start
        block.min_overlap, block.context = max(shared, 0) - 2 * context, context
        if after is not None:
            block.stride = after.start - side.start
            block = block.add_succ()
    first.freeze()
    return first.chain


def grid_of(cores: Sequence[Box]) -> np.ndarray:
    """Return which tile stands where on the grid of tiles."""
    starts = np.array([[side.start for side in core] for core in cores])
    places = [np.unique(along, return_inverse=True) for along in starts.T]
    grid = np.zeros([len(values) for values, _ in places], dtype=np.int64)
    grid[tuple(place for _, place in places)] = np.arange(len(cores))
    return grid


def neighbours(grid: np.ndarray) -> list[tuple[int, int, int]]:
    """Return the axis across, and the two tiles, of every face that two cores share."""
    found = []
    for axis in range(grid.ndim):
        along = np.moveaxis(grid, axis, 0)
        pairs = zip(along[:-1].ravel().tolist(), along[1:].ravel().tolist(), strict=True)
        found += [(axis, one, other) for one, other in pairs]
    return found


def numbered(
    tiles: Tiles, windows: Sequence[Box], cores: Sequence[Box], dtype: type = np.uint32
) -> tuple[list[np.ndarray], int]:
    """Return the labels of the cores with ids that are unique, and the largest one."""
    pieces = []
    n_pieces = 0
    for tile, window, core in zip(tiles, windows, cores, strict=True):
        inside = tile[shift(core, [side.start for side in window])]
        piece = inside.astype(dtype)
        np.add(piece, n_pieces, out=piece, where=inside > 0)
        n_pieces += int(inside.max(initial=0))
        pieces.append(piece)
    return pieces, n_pieces


def assembled(
    pieces: Sequence[np.ndarray], cores: Sequence[Box], shape: Sequence[int]
) -> np.ndarray:
    """Return one array of those of the cores; 0 between them."""
    found = np.zeros(shape, dtype=pieces[0].dtype)
    for piece, core in zip(pieces, cores, strict=True):
        found[core] = piece
    return found


def parted(labels: np.ndarray, cores: Sequence[Box], grid: np.ndarray) -> list[np.ndarray]:
    """Return the arrays of the cores out of one in which they stand without gaps."""
    pieces = [np.zeros(0)] * len(cores)
    for place, tile in np.ndenumerate(grid):
        box = []
        for axis, at in enumerate(place):
            line = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)[:, 0]
            ends = np.cumsum([0] + [cores[k][axis].stop - cores[k][axis].start for k in line])
            box.append(slice(int(ends[at]), int(ends[at + 1])))
        pieces[tile] = labels[tuple(box)]
    return pieces


RULES: dict[str, Callable] = {
    "offset": offset,
    "face touch": face_touch,
    "face IoU": face_iou,
    "Cellpose": cellpose,
    "StarDist": stardist,
    "ours": ours,
}
