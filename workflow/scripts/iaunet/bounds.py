"""How far a window must look so that its core is labelled as in the whole image.

Units: centres and offsets are in 1/16 px; squared distances over twice the squared
bandwidth ("costs", minus the logarithm of the Gaussian) are in 1/2**40.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iaunet import fixedpoint, grid, meanshift
from iaunet.errors import InputError
from iaunet.kernels import three
from iaunet.settings import Settings

UNIT = fixedpoint.SCALE["off"]
COST_BITS = 40
WEIGHT = np.rint(2.0**COST_BITS / (2 * UNIT**2 * fixedpoint.SIGMA**2)).astype(np.int64)
"""Cost of a distance of 1/16 px for every value of ``lsig``; falls with the bandwidth."""


@dataclass(frozen=True)
class Bounds:
    """Largest offset (1/16 px) and largest ``lsig`` per axis of all object voxels of an image.

    They decide how far a window must look; they must hold for the whole image.
    """

    off: tuple[int, ...]
    lsig: tuple[int, ...]


@dataclass(frozen=True)
class Reach:
    """How far, in px per axis, a window must look; see `reach`."""

    extent: tuple[int, ...]
    seeds: tuple[int, ...]
    maxima: tuple[int, ...]


def reach(settings: Settings, bounds: Bounds) -> Reach:
    """Return how far a window must look so that its core is labelled as in the whole image.

    Per axis, in 1/16 px, with m the largest offset, R the largest distance at which a seed
    accepts a voxel (R**2 * WEIGHT <= -ln phi) and N the largest distance at which a seed
    suppresses another (N**2 * WEIGHT < -ln suppress), both for the largest bandwidth:

    * a voxel p of object k has ``|x_p + o_p - c_k| <= R``, hence ``|x_p - c_k| <= R + m``;
      the same holds for its seed voxel. An object is therefore at most ``2 (R + m)`` long.
      All objects whose bounding box meets the core lie within ``extent = 2 (R + m)`` of it;
      only these can label a core voxel, be it directly or as a filled hole. An object that
      competes with such an object k for a hole is nested in k or around it, so its box lies
      in the box of k or meets the core, too: it is also seen whole.
    * a seed that accepts p has its centre within ``m + R`` of x_p; a seed that suppresses it
      has its own within N of that, and lies within m of its centre. All these are found in
      core + extent + ``seeds = 2 m + R + N``.
    * whether a voxel is a seed needs the seed map in a window, and smoothing one more voxel
      per pass: ``maxima = seed_window + smooth``.

    For mode meanshift see `meanshift.reach`; there, ``maxima = smooth``.
    """
    if settings.mode == "meanshift":
        whole, made = meanshift.reach(settings.kernel, offsets_compared(settings, bounds))
        return Reach(whole, made, (settings.smooth,) * len(whole))
    extent, seeds, maxima = [], [], []
    for off, lsig, window in zip(bounds.off, bounds.lsig, settings.seed_window, strict=True):
        accept = math.isqrt(cost(settings.phi) // int(WEIGHT[lsig]))
        suppress = math.isqrt(max(cost(settings.suppress) - 1, 0) // int(WEIGHT[lsig]))
        extent.append(2 * (accept + off) // UNIT)
        seeds.append((2 * off + accept + suppress) // UNIT)
        maxima.append(window + settings.smooth)
    return Reach(tuple(extent), tuple(seeds), tuple(maxima))


def offsets_compared(settings: Settings, bounds: Bounds) -> tuple[int, ...]:
    """Return the largest offset per axis that the mode looks at, 1/16 px."""
    unused = settings.mode == "meanshift" and settings.vectors == "conv"
    return (0,) * len(bounds.off) if unused else bounds.off


def cost(phi: float) -> int:
    """Return the cost at which a Gaussian has the value `phi`."""
    return round(-math.log(phi) * 2**COST_BITS)


def radii(cost: int) -> np.ndarray:
    """Return the largest distance, 1/16 px, that costs at most `cost`, for every ``lsig``."""
    return np.array([math.isqrt(cost // int(weight)) for weight in WEIGHT])


def check(found: np.ndarray, bounds: Sequence[int], what: str, box: grid.Box) -> None:
    if (found > three(bounds, 0)).any():
        raise InputError(
            f"network outputs: {what} {found.max(axis=0)} in {box} exceeds the maximum "
            f"{tuple(bounds)} of the image; outputs of different runs are mixed, redo them"
        )
