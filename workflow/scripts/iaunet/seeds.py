"""Seeds of objects: strict local maxima of the seed map, placed and thinned by integers alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from iaunet import fixedpoint, grid, kernels
from iaunet.bounds import UNIT, WEIGHT, Bounds, check, cost, radii
from iaunet.grid import volume
from iaunet.kernels import three
from iaunet.settings import Settings

Read = Callable[[str, grid.Box], np.ndarray]
Loops = Any
"""`kernels`, or what has the same functions on another device: `tensorkernels.TensorKernels`."""

PART_PX = {2: (1024, 1024), 3: (64, 256, 256)}
"""Of an output that is looked at where seeds are; a multiple of what is compressed together."""


@dataclass(frozen=True)
class Seeds:
    """Seeds by gid; tables of three columns have the axes z, y, x, z is 0 in 2D."""

    gid: np.ndarray
    score: np.ndarray
    voxel: np.ndarray
    centre: np.ndarray
    lsig: np.ndarray

    def take(self, which: np.ndarray) -> "Seeds":
        """Return some of the seeds."""
        return Seeds(*(getattr(self, field.name)[which] for field in fields(self)))


def find_seeds(
    read: Read,
    fg: np.ndarray,
    box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    margin_px: Sequence[int],
    loops: Loops,
) -> Seeds:
    """Return the seeds in the box of `fg`, not yet with centre and bandwidth."""
    score, origin = seed_scores(read, box, image_shape, settings, margin_px, loops)
    least = math.floor(settings.seed * score_one(settings)) + 1
    voxel = loops.find_seeds(
        score, volume(fg), least, settings.fg_least,
        three(settings.seed_window, 0), three(grid.origin(box), 0) - origin,
    )  # fmt: skip
    score = loops.at(score, voxel)
    voxel += origin
    return Seeds(gids(voxel, image_shape), score, voxel, voxel, voxel)


def seed_scores(
    read: Read,
    box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    margin_px: Sequence[int],
    loops: Loops = kernels,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the seed map, smoothed, of a box and a margin, three axes; and its first voxel."""
    read_box = grid.grow(box, margin_px, image_shape)
    score = volume(np.ascontiguousarray(read("seed", read_box)))
    for _ in range(settings.smooth):
        score = loops.box_sum(score)
    return score, three(grid.origin(read_box), 0)


def gids(voxel: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Return the C-order indices of voxels in the image."""
    gid = np.zeros(len(voxel), dtype=np.int64)
    for axis, length in enumerate(three(image_shape, 1)):
        gid = gid * length + voxel[:, axis]
    return gid


def score_one(settings: Settings) -> int:
    """Return the score of a voxel around which all seed probabilities are 1."""
    return fixedpoint.SCALE["seed"] * 3 ** (len(settings.seed_window) * settings.smooth)


def placed(
    seeds: Seeds,
    read: Read,
    off: np.ndarray,
    box: grid.Box,
    wide_box: grid.Box,
    bounds: Bounds,
) -> Seeds:
    """Return the seeds of a wide box with the centre and bandwidth that the outputs give them.

    `off` is known of the box alone; what lies around it is read where there are seeds.
    """
    ndim = len(box)
    voxel = seeds.voxel[:, 3 - ndim :]
    inside = are_in(seeds.voxel, box)
    centre, bandwidth = UNIT * seeds.voxel, np.zeros_like(seeds.voxel)
    there = tuple((voxel[inside] - grid.origin(box)).T)
    centre[inside, 3 - ndim :] += off[(slice(None), *there)].T
    centre[~inside, 3 - ndim :] += at_voxels(read, "off", voxel[~inside], wide_box)
    bandwidth[:, 3 - ndim :] = at_voxels(read, "lsig", voxel, wide_box)
    check(bandwidth, bounds.lsig, "bandwidth", box)
    return Seeds(seeds.gid, seeds.score, seeds.voxel, centre, bandwidth)


def are_in(voxel: np.ndarray, box: grid.Box) -> np.ndarray:
    """Tell which voxels (n, 3) lie in a box."""
    first = three(grid.origin(box), 0)
    return ((voxel >= first) & (voxel < first + three(grid.box_shape(box), 1))).all(axis=1)


def at_voxels(read: Read, name: str, voxel: np.ndarray, box: grid.Box) -> np.ndarray:
    """Return what an output with a leading axis says at voxels (n, axes) in a box.

    Part by part of the box, so that little of it is in memory at a time.
    """
    found = np.zeros(voxel.shape, dtype=np.int64)
    part_px = PART_PX[len(box)]
    parts, which = np.unique(voxel // part_px, axis=0, return_inverse=True)
    for number, part in enumerate(parts):
        whole = tuple(slice(k * n, (k + 1) * n) for k, n in zip(part, part_px, strict=True))
        here = grid.intersection(whole, box)
        some = which == number
        at = tuple((voxel[some] - grid.origin(here)).T)
        found[some] = read(name, here)[(slice(None), *at)].T
    return found


def kept(seeds: Seeds, settings: Settings) -> Seeds:
    """Return the seeds that are not suppressed by a better one."""
    least = cost(settings.suppress)
    radius = radii(max(least - 1, 0))[seeds.lsig]
    radius[:, : 3 - len(settings.seed_window)] = 0
    kept = kernels.keep_seeds(
        seeds.score, seeds.centre, radius, seeds.lsig, WEIGHT, least,
        *kernels.bins(seeds.centre, radius.max(axis=0)),
    )  # fmt: skip
    return seeds.take(kept)
