"""Segment windows of an image once more, with tiles of their own, and compare."""

from collections.abc import Callable, Sequence

import numpy as np

from iaunet import clustering, grid, predict
from iaunet.bounds import Bounds
from iaunet.errors import InputError
from iaunet.quarantine import Failed
from iaunet.settings import Settings

WINDOW_PX = {2: (256, 256), 3: (16, 96, 96)}


def windows(
    shape: Sequence[int], core_px: Sequence[int], count: int, rng: np.random.Generator
) -> list[grid.Box]:
    """Return boxes in the image, around places where tiles meet if there are several.

    Neither their places nor their sizes are those of tiles, and no two are the same.
    """
    ndim = len(shape)
    size = [min(side, n) for side, n in zip(WINDOW_PX[ndim], shape, strict=True)]
    found: dict[tuple[int, ...], grid.Box] = {}
    for _ in range(20 * count):
        box = []
        for side, n, core in zip(size, shape, core_px, strict=True):
            n_faces = (n - 1) // core
            middle = core * int(rng.integers(1, n_faces + 1)) if n_faces else rng.integers(n)
            start = int(middle) - int(rng.integers(side // 4, 3 * side // 4 + 1))
            start = min(max(0, start), n - side)
            box.append(slice(start, start + side))
        found.setdefault(grid.origin(tuple(box)), tuple(box))
        if len(found) == count:
            break
    return list(found.values())


def differing_voxels(
    box: grid.Box,
    blocks: predict.Blocks,
    labels: Callable[[grid.Box], np.ndarray],
    settings: Settings,
    bounds: Bounds,
) -> int:
    """Return how many voxels of a window get another label when it is a tile of its own.

    Parameters
    ----------
    blocks : the network over the image
    labels : box -> labels that are to be proved, gid + 1
    bounds : of the whole image
    """
    far = clustering.reach(settings, bounds)
    margin = [sum(parts) + 1 for parts in zip(far.extent, far.seeds, far.maxima, strict=True)]
    stride = blocks.net.id_stride
    sides = zip(grid.grow(box, margin, blocks.shape), stride, blocks.shape, strict=True)
    wide = tuple(
        slice(side.start // step * step, min(-(-side.stop // step) * step, n))
        for side, step, n in sides
    )
    (outputs,) = blocks.of_cores([wide])
    if isinstance(outputs, Failed):
        raise InputError(f"--verify: the network failed twice on {wide} ({outputs.cause})")
    first_cell = [side.start // step for side, step in zip(wide, stride, strict=True)]

    def read(name: str, here: grid.Box) -> np.ndarray:
        first = first_cell if name == "id" else grid.origin(wide)
        return outputs[name][(..., *grid.shift(here, first))]

    found = clustering.label_window(read, box, blocks.shape, settings, bounds, stride, faces=False)
    return int(np.count_nonzero(found.labels != labels(box)))
