"""Tiles that failed twice: their regions are empty, and what lies near them is flagged.

Only what concerns one tile is caught: an `InputError` or an error of the file system (a damaged
store, a model that is refused, a full disk) concerns the whole image and passes.

A failure is a plain dict, because it goes through JSON: ``tile`` and ``batch`` (numbers), ``stage``
(the step), ``cause`` (one line) and ``box`` ([start, stop] per axis, px of the network's grid).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from iaunet import grid
from iaunet.errors import InputError

if TYPE_CHECKING:  # the check before any job does without NumPy
    import numpy as np

log = logging.getLogger("quarantine")

LONGEST_CAUSE = 300
SHOWN = 3

Result = TypeVar("Result")
Failure = dict[str, object]


@dataclass(frozen=True)
class Failed:
    """Stands in for a result that could not be had twice."""

    cause: str


def attempt(work: Callable[[], Result], what: str) -> Result | Failed:
    """Return what the work gives at the first or the second try, or why it gives nothing."""
    for again in (True, False):
        try:
            return work()
        except (InputError, OSError):
            raise
        except Exception as error:  # whatever a network or a kernel raises
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_CAUSE]
            log.warning("%s failed, %s", what, "once more" if again else "twice", exc_info=True)
    return Failed(cause)


def failure(tile: grid.Tile, batch: int, stage: str, cause: str) -> Failure:
    """Return what is told of a tile that failed."""
    box = [[side.start, side.stop] for side in tile.core]
    return {"tile": tile.index, "batch": batch, "stage": stage, "cause": cause, "box": box}


def check_some_left(failed: Sequence[Failure], n_tiles: int, n_in_image: int) -> None:
    """Raise when a batch has nothing else: then it is not the tiles, and the job has failed.

    A batch of one tile of several is no such case.
    """
    if failed and len(failed) == n_tiles and (n_tiles > 1 or n_in_image == 1):
        raise InputError(
            f"all {n_tiles} tiles of batch {failed[0]['batch']} failed twice, the first with "
            f"{failed[0]['cause']}; look at the log, and run the same command again"
        )


def sentence(failed: Sequence[Failure], n_tiles: int) -> str:
    """Return which tiles of an image failed, and why, for a reader."""
    each = [
        f"tile {one['tile']} ({one['stage']}, batch {one['batch']}): {one['cause']}"
        for one in failed[:SHOWN]
    ]
    more = [f"and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    word = "tile" if n_tiles == 1 else "tiles"
    return (
        f"{len(failed)} of {n_tiles} {word} failed twice, their regions are empty: "
        f"{'; '.join([*each, *more])}"
    )


def on_grid(failed: Sequence[Failure], shape: Sequence[int], to: Sequence[int]) -> list[Failure]:
    """Return failures whose boxes, of a grid of `shape`, are the voxels of `to` that they meet."""
    return [
        {
            **one,
            "box": [
                [start * m // n, -(-stop * m // n)]
                for (start, stop), n, m in zip(one["box"], shape, to, strict=True)
            ],
        }
        for one in failed
    ]


def within(
    low: "np.ndarray", high: "np.ndarray", failed: Sequence[Failure], margin_px: Sequence[int]
) -> "np.ndarray":
    """Tell which objects come as near to the region of a failed tile as `margin_px`.

    Parameters
    ----------
    low, high : (n, axes) int arrays
        First and last voxel of each object along each axis; 1 px of margin is touching.
    """
    found = low[:, 0] > high[:, 0]  # none
    for one in failed:
        near = low[:, 0] <= high[:, 0]
        for axis, ((start, stop), margin) in enumerate(zip(one["box"], margin_px, strict=True)):
            near &= (low[:, axis] < stop + margin) & (high[:, axis] >= start - margin)
        found |= near
    return found


def pointing_in(
    lost: "np.ndarray", off_px: "np.ndarray", first: Sequence[int], failed: Sequence[Failure]
) -> int:
    """Return how many voxels point into the region of a failed tile.

    Parameters
    ----------
    lost : bool array
        Foreground of a window that belongs to no object.
    off_px : (axes, ...) array
        Offset of each voxel to the centre of its object, px.
    first : the first voxel of the window.
    """
    where = lost.nonzero()
    centres = [
        at + start + off_px[axis][where]
        for axis, (at, start) in enumerate(zip(where, first, strict=True))
    ]
    found = where[0] < 0  # none
    for one in failed:
        inside = where[0] >= 0
        for centre, (start, stop) in zip(centres, one["box"], strict=True):
            inside &= (centre >= start) & (centre < stop)
        found |= inside
    return int(found.sum())
