"""How large the objects of an image are, asked of the network itself.

A network finds objects of the sizes that it was trained with. One window of the image is
segmented at several zooms: where two neighbouring zooms show the network sizes that it knows,
it finds the same objects in both; where objects are too small or too large, it contradicts
itself. Zooms near that of the image are tried first; the first two that agree well tell the size,
or else the two that agree best.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from iaunet import grid, metrics, scale
from iaunet.grid import Box

PAIRS = ((0.5, 1.0), (1.0, 2.0), (0.25, 0.5), (2.0, 4.0), (0.125, 0.25))
ENOUGH = 0.8
"""Two zooms that agree so well end the search."""
LEAST = 0.2
"""Below this, no two zooms agree and the size is unknown."""
WINDOW_PX = {2: (512, 512), 3: (40, 144, 144)}
"""What is segmented, at every zoom."""
PART = 16
"""Voxels per axis of the coarse image that are made at a time: the image is never read whole."""

Segment = Callable[[np.ndarray], np.ndarray]
Read = Callable[[Box], np.ndarray]


@dataclass(frozen=True)
class Look:
    """What the network found in the window at one zoom.

    `grid` is the shape of the whole image at that zoom, `box` the window on it, `labels` what
    was found there; `sizes` (n, axes), px of the image, are those of the objects that are whole.
    """

    grid: tuple[int, ...]
    box: Box
    labels: np.ndarray
    sizes: np.ndarray


def estimate(
    segment: Segment, read: Read, shape: Sequence[int], spacing: Sequence[float]
) -> tuple[list[float] | None, dict[str, float]]:
    """Return the median diameter of the objects of an image, and what it rests on.

    Parameters
    ----------
    segment : float32 array -> int labels of the same shape, 0 is background.
    read : box of the image -> float32 array, scaled for the network.
    spacing : distance of neighbouring voxels per axis, in any unit.

    Returns
    -------
    diameter : px per axis, y and x the same; None when no two zooms agree on objects.
    agreements : of every pair of zooms that was looked at, from 0 to 1.
    """
    middle = _brightest(read, shape)
    looks: dict[float, Look] = {}
    agreements: dict[tuple[float, float], float] = {}
    for pair in PAIRS:
        for zoom in pair:
            if zoom not in looks:
                to = scale.grid_shape(shape, _zooms(zoom, spacing))
                looks[zoom] = _look(segment, read, shape, to, middle)
        agreements[pair] = agreement(*(looks[zoom] for zoom in pair))
        if agreements[pair] >= ENOUGH:
            break
    best = max(agreements, key=agreements.__getitem__)
    sizes = np.concatenate([looks[zoom].sizes for zoom in best])
    known = agreements[best] >= LEAST and len(sizes)
    told = {f"{coarse:g} and {fine:g}": round(a, 3) for (coarse, fine), a in agreements.items()}
    return scale.median_diameter(sizes) if known else None, told


def _look(
    segment: Segment,
    read: Read,
    shape: Sequence[int],
    to: tuple[int, ...],
    middle: Sequence[float],
) -> Look:
    """Segment the window around a place at the zoom that gives the image the shape `to`."""
    box = _window(to, middle)
    labels = segment(scale.resampled(read, shape, to, box))
    return Look(to, box, labels, scale.diameters(_uncut(labels, box, to)) * np.divide(shape, to))


def agreement(coarse: Look, fine: Look) -> float:
    """Return the panoptic quality of one zoom against a finer one, where both looked.

    As if there were one object more, on which they do not agree: a single blob at two coarse
    zooms says less than twenty nuclei at two fine ones.
    """
    at = scale.nearest(coarse.grid, fine.grid, fine.box)
    at = [index - side.start for index, side in zip(at, coarse.box, strict=True)]
    both = [
        (index >= 0) & (index < side.stop - side.start)
        for index, side in zip(at, coarse.box, strict=True)
    ]
    here = coarse.labels[np.ix_(*(index[seen] for index, seen in zip(at, both, strict=True)))]
    there = fine.labels[np.ix_(*both)]
    found = metrics.accuracy(metrics.overlap(here, there))
    n_objects = found["tp_50"] + found["fp_50"] / 2 + found["fn_50"] / 2
    return (found["pq"] or 0.0) * n_objects / (n_objects + 1)


def _zooms(zoom: float, spacing: Sequence[float]) -> tuple[float, ...]:
    """Return the zoom per axis: z is not thinned before y and x are as coarse as it is."""
    return tuple(zoom if zoom > 1 else min(1.0, zoom * step / spacing[-1]) for step in spacing)


def _brightest(read: Read, shape: Sequence[int]) -> tuple[float, ...]:
    """Return the place, 0 to 1 per axis, of the window with most light."""
    side = WINDOW_PX[len(shape)]
    to = tuple(min(n, max(8, 8 * n // s)) for n, s in zip(shape, side, strict=True))
    small = np.zeros(to, np.float32)
    for part in grid.tiles(to, (PART,) * len(to)):
        small[part.core] = scale.resampled(read, shape, to, part.core).clip(0, 1)
    wide = [max(1, round(m * s / n)) for n, m, s in zip(shape, to, side, strict=True)]
    light = ndimage.uniform_filter(small, wide, mode="constant")
    place = np.unravel_index(int(light.argmax()), to)
    return tuple((p + 0.5) / n for p, n in zip(place, to, strict=True))


def _window(shape: Sequence[int], middle: Sequence[float]) -> Box:
    """Return the window around a place, moved into the image."""
    box = []
    for n, side, at in zip(shape, WINDOW_PX[len(shape)], middle, strict=True):
        first = min(max(0, math.floor(at * n - side / 2)), max(0, n - side))
        box.append(slice(first, min(n, first + side)))
    return tuple(box)


def _uncut(labels: np.ndarray, box: Box, shape: Sequence[int]) -> np.ndarray:
    """Return the labels without the objects that the window may cut off the image."""
    faces = [np.zeros(0, labels.dtype)]
    for axis, (side, n) in enumerate(zip(box, shape, strict=True)):
        faces += [labels.take(0, axis).ravel()] * (side.start > 0)
        faces += [labels.take(-1, axis).ravel()] * (side.stop < n)
    return np.where(np.isin(labels, np.concatenate(faces)), 0, labels)
