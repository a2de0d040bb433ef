"""The whole image to look around in: one plane (2D), or sections along three planes (3D).

Reads a level of the pyramid that fits a screen; in 3D so few sections of such a level that all
planes together have as many pixels as the one of a 2D image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iaunet import gallery, grid, views
from iaunet.gallery import Sample

LONGEST_PX = 2048
PIXELS = 2048**2
"""Of all sections of an image together."""
SECTIONS = 24
"""Of one plane, at most; half of them are worth a coarser level."""
MOST_OBJECTS = 12_000
"""That have an outline of their own; those of more objects are drawn as pixels."""
SMALL_PX = 12
"""A median object that is not as wide as this on the level that is shown is worth a word."""
NAMES = {None: "XY", 0: "XY", 1: "XZ", 2: "ZY"}


@dataclass(frozen=True)
class Section:
    """One picture, and the outlines of the objects in it.

    Attributes
    ----------
    at : position along the axis that the plane looks along, px of the image; 0 in 2D.
    picture, overlay : data URIs; the overlay has the outlines of all objects, or is None.
    rows : rows of the table of objects.
    lines : outlines of each of these objects: x and y, then steps of x and y, half pixels.
    """

    at: int
    picture: str
    overlay: str | None
    rows: list[int]
    lines: list[list[list[int]]]


@dataclass(frozen=True)
class Plane:
    """Parallel sections.

    Attributes
    ----------
    name, axis : such as XY, and the axis that it looks along; empty in 2D.
    width, height : of a section, in micrometers, or in pixels when their size is unknown.
    scale : of half a pixel across and down, in these.
    seams : x and y of tile borders, in these.
    first : the section that is shown first.
    level : of the pyramid.
    """

    name: str
    axis: str
    width: float
    height: float
    scale: tuple[float, float]
    seams: tuple[list[float], list[float]]
    sections: list[Section]
    first: int
    level: int


def chosen(n_objects: int) -> np.ndarray:
    """Return the rows of the objects that have an outline of their own, evenly spread."""
    if n_objects <= MOST_OBJECTS:
        return np.arange(n_objects)
    return np.linspace(0, n_objects - 1, MOST_OBJECTS).astype(np.int64)


def planes(sample: Sample, pixels: int = PIXELS) -> list[Plane]:
    """Return one plane of a 2D image, three of a 3D one, of at most so many pixels together."""
    middle = [length / 2 for length in sample.shape]
    if len(sample.objects):
        middle = np.median(sample.centres, axis=0).tolist()
    rows = chosen(len(sample.objects))
    labels = sample.objects["label"].to_numpy(np.uint64)[rows]
    room = pixels // len(sample.faces)
    return [_plane(sample, face, rows, labels, middle, room) for face in sample.faces]


def level_of(sample: Sample, face: int | None, room: int) -> int:
    """Return the finest level of which enough sections fit into so many pixels."""
    across = gallery.sides_of(face)
    for level, array in enumerate(sample.images):
        longest = max(array.shape[axis] for axis in across)
        n = 1 if face is None else min(array.shape[face], SECTIONS // 2)
        if longest <= LONGEST_PX and n * math.prod(array.shape[a] for a in across) <= room:
            return level
    return len(sample.images) - 1


def _plane(
    sample: Sample,
    face: int | None,
    rows: np.ndarray,
    labels: np.ndarray,
    middle: Sequence[float],
    room: int,
) -> Plane:
    level = level_of(sample, face, room)
    shape, axes = sample.images[level].shape, gallery.sides_of(face)
    shrink = [full / length for full, length in zip(sample.shape, shape, strict=True)]
    down, across = (sample.spacing[axis] * shrink[axis] for axis in axes)
    depth = 1 if face is None else shape[face]
    area = math.prod(shape[axis] for axis in axes)
    n = max(1, min(depth, SECTIONS, room // max(1, area)))
    at = ((np.arange(n) + 0.5) * depth / n).astype(int)
    to_image = 1.0 if face is None else shrink[face]
    places = [int((k + 0.5) * to_image) for k in at.tolist()]
    first = 0 if face is None else int(np.argmin(np.abs(np.array(places) - middle[face])))
    return Plane(
        name=NAMES[face],
        axis="" if face is None else sample.axes[face],
        width=round(shape[axes[1]] * across, 6),
        height=round(shape[axes[0]] * down, 6),
        scale=(across / 2, down / 2),
        seams=tuple(_borders(sample, axis) for axis in axes[::-1]),
        sections=[
            _section(sample, level, face, k, place, rows, labels)
            for k, place in zip(at.tolist(), places, strict=True)
        ],
        first=first,
        level=level,
    )


def _borders(sample: Sample, axis: int) -> list[float]:
    """Return where tiles meet along an axis, as in `Plane.seams`."""
    if sample.core is None:
        return []
    inside = np.arange(sample.core[axis], sample.shape[axis] - 1e-6, sample.core[axis])
    return np.round(inside * sample.spacing[axis], 6).tolist()


def _section(
    sample: Sample,
    level: int,
    face: int | None,
    at: int,
    place: int,
    rows: np.ndarray,
    labels: np.ndarray,
) -> Section:
    box: grid.Box = tuple(slice(0, length) for length in sample.images[level].shape)
    plane = gallery.cut(sample.images[level], box, face, at)
    found = gallery.cut(sample.labels[level], box, face, at)
    overlay = None
    if len(labels) < len(sample.objects):
        overlay = views.outline_pixels(found, gallery.FOUND_RGB)
        found = np.where(np.isin(found, labels), found, 0)
    here, lines = [], []
    for label, outlines in views.contours(found, closed=True):
        here.append(int(rows[np.searchsorted(labels, label)]))
        lines.append([_steps(points) for points in outlines])
    picture = views.jpeg(views.grey(plane, sample.limits), plane.shape, 0, quality=78)
    return Section(place if face is not None else 0, picture, overlay, here, lines)


def _steps(points: np.ndarray) -> list[int]:
    """Return x and y of the first point, then the steps."""
    return np.concatenate([points[:1], np.diff(points, axis=0)])[:, ::-1].ravel().tolist()


def note(sample: Sample, shown: Sequence[Plane]) -> str:
    """Return what of the image is shown, in words."""
    if not len(sample.objects):
        return "No objects were found."
    level, found = shown[0].level, ["Drag to move, Ctrl and the wheel to zoom."]
    if level:
        text = f"Level {level} of the pyramid"
        small = sample.diameter_px[-1] * sample.images[level].shape[-1] / sample.shape[-1]
        more = f", where a median object is {small:.1f} px wide" if small < SMALL_PX else ""
        found.append(f"{text}{more}.")
    for plane in shown:
        depth = sample.shape[sample.axes.index(plane.axis)] if plane.axis else 1
        if len(plane.sections) < depth:
            found.append(f"{plane.name}: {len(plane.sections)} of {depth} sections.")
    if len(sample.objects) > MOST_OBJECTS:
        found.append(
            f"{MOST_OBJECTS:,} of {len(sample.objects):,} objects, evenly spread, can be chosen "
            "and have colours."
        )
    return " ".join(found)
