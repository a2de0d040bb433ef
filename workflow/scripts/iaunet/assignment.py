"""Voxels -> the seeds whose Gaussians they fit best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iaunet import fixedpoint, grid
from iaunet.bounds import COST_BITS, UNIT, WEIGHT, Bounds, check, cost, radii
from iaunet.grid import volume
from iaunet.kernels import three
from iaunet.seeds import Loops, Read, Seeds
from iaunet.settings import Settings

ID_ONE = fixedpoint.SCALE["id"] ** 2


@dataclass(frozen=True)
class Fit:
    """What the compiled loops need to compute the cost of a voxel for a seed.

    Attributes
    ----------
    inner, shape, margin : first voxel and size of the box to assign, and its margin in `owner`.
    centres : centre and weight of the seeds.
    identity : price and length of vectors, those of voxels and of seeds, stride, first cell.
    """

    inner: np.ndarray
    shape: np.ndarray
    margin: np.ndarray
    seeds: Seeds
    centres: tuple[np.ndarray, np.ndarray]
    identity: tuple

    @classmethod
    def of(
        cls,
        read: Read,
        seeds: Seeds,
        box: grid.Box,
        wide_box: grid.Box,
        settings: Settings,
        id_stride: Sequence[int] | None,
    ) -> "Fit":
        """Read identity vectors and put everything into arrays of three axes."""
        weight = WEIGHT[seeds.lsig]
        weight[:, : 3 - len(box)] = 0
        price, of_seeds = 0, np.zeros((len(seeds.gid), 0), dtype=np.int8)
        if settings.identity > 0 and id_stride is not None:
            price = round(settings.identity * 2**COST_BITS / ID_ONE)
            vectors, stride, first = _vectors(read, wide_box, id_stride)
            of_seeds = np.ascontiguousarray(vectors[tuple((seeds.voxel // stride - first).T)])
            del vectors
        vectors, stride, first = _vectors(read, box, id_stride)
        return cls(
            inner=three(grid.origin(box), 0),
            shape=three(grid.box_shape(box), 1),
            margin=np.array([len(box) - 2, 1, 1]),
            seeds=seeds,
            centres=(seeds.centre, weight),
            identity=(price, ID_ONE, vectors, of_seeds, stride, first),
        )


def _vectors(
    read: Read, box: grid.Box, id_stride: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return identity vectors (z, y, x, channel) of a box, px per cell, and the first cell."""
    if id_stride is None:
        return np.zeros((1, 1, 1, 0), dtype=np.int8), np.full(3, 1 << 62), np.zeros(3, np.int64)
    cells = grid.cells_of(box, id_stride)
    vectors = np.moveaxis(volume(read("id", cells), 1), 0, 3)
    return np.ascontiguousarray(vectors), three(id_stride, 1), three(grid.origin(cells), 0)


def owners(
    fit: Fit,
    fg: np.ndarray,
    off: np.ndarray,
    settings: Settings,
    bounds: Bounds,
    loops: Loops,
) -> np.ndarray:
    """Return for the voxels of the box the seed that owns each, cleaned; see `kernels`."""
    owner = loops.nobody(fit.shape + 2 * fit.margin)
    most = cost(settings.phi)
    radius = radii(most)[fit.seeds.lsig]
    radius[:, : 3 - fg.ndim] = 0
    farthest = loops.assign(
        owner, volume(fg), volume(off, 1), settings.fg_least, fit.inner, fit.margin, UNIT,
        most, fit.centres[0], radius, fit.centres[1], *fit.identity,
    )  # fmt: skip
    box = tuple(slice(start, start + n) for start, n in zip(fit.inner, fit.shape, strict=True))
    check(farthest[None], bounds.off, "offset (1/16 px)", box)
    loops.keep_component(
        owner, fit.seeds.voxel - fit.inner + fit.margin, fit.margin, settings.least_fragment
    )
    loops.fill_holes(owner, len(fit.seeds.gid), fit.margin)
    return owner
