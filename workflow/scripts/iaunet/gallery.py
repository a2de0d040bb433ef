"""Views of one image: as a whole, close up, and of the objects that need a look.

Reads only what is shown: a level of the pyramid that fits a screen, or windows at full resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from iaunet import grid, regions, views

PLANES_PX = 900
# Largest volume that is read for the projections, in voxels.
PROJECTION_VOXELS = 2**26
ZOOM_DIAMETERS = 8
ZOOM_PX = (96, 384)
N_UNSURE = 12
FOUND_RGB = (255, 176, 0)


@dataclass(frozen=True)
class Sample:
    """One image with its instances, opened but not read; lengths are per axis, in array order.

    Attributes
    ----------
    images, labels : tuples of arrays or of what is sliced like them
        Levels of the pyramid, full resolution first; both have the same shapes.
    spacing, unit_um
        Distance of pixels, and the micrometers of a distance of 1 or None when unknown.
    limits
        Intensities shown black and white.
    core
        Size of a tile in pixels; None when the image was one tile.
    objects
        Table with a row per object.
    diameter_px
        Diameter of a median object.
    """

    images: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    axes: tuple[str, ...]
    spacing: tuple[float, ...]
    unit_um: float | None
    limits: tuple[float, float]
    core: tuple[float, ...] | None
    objects: pd.DataFrame
    diameter_px: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image."""
        return tuple(self.images[0].shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def size_column(self) -> str:
        """Column of the number of pixels of an object."""
        return "area_px" if self.ndim == 2 else "volume_px"

    @property
    def centres(self) -> np.ndarray:
        """Centres of all objects, float (n, ndim), pixels."""
        return self.objects[[f"{axis}_px" for axis in self.axes]].to_numpy(float)

    def label(self, row: int) -> int:
        """Return the number of the object in a row of the table."""
        return int(self.objects["label"].iloc[row])

    @property
    def faces(self) -> tuple[int | None, ...]:
        """Axes that a view may look along; None is the only view of a 2D image."""
        return (None,) if self.ndim == 2 else (0, 1, 2)

    def level(self, longest_px: int, axes: Sequence[int]) -> int:
        """Return the finest level that is not longer than `longest_px` along some axes."""
        for level, array in enumerate(self.images):
            if max(array.shape[axis] for axis in axes) <= longest_px:
                return level
        return len(self.images) - 1

    def zoom_sides(self) -> tuple[float, ...]:
        """Return the sides of a close-up: some objects wide, less than the image."""
        wanted = ZOOM_DIAMETERS * self.diameter_px[-1]
        in_plane = max(self.shape[-2:])
        side = float(np.clip(wanted, ZOOM_PX[0], min(ZOOM_PX[1], max(ZOOM_PX[0], in_plane / 2))))
        return tuple(side * self.spacing[-1] / step for step in self.spacing)


def sides_of(face: int | None) -> tuple[int, int]:
    """Return the axes that are rows and columns of a view; ZY views have z along the rows."""
    if face is None:
        return 0, 1
    return {0: (1, 2), 1: (0, 2), 2: (1, 0)}[face]


def cut(array: np.ndarray, box: grid.Box, face: int | None, at: int) -> np.ndarray:
    """Read one plane of a box; `at` is the position along `face`, in pixels of the array."""
    if face is None:
        return np.asarray(array[box])
    index = [*box[:face], at, *box[face + 1 :]]
    plane = np.asarray(array[tuple(index)])
    return plane.T if face == 2 else plane


def plane_view(
    sample: Sample,
    box: grid.Box,
    *,
    title: str,
    face: int | None = None,
    at: int = 0,
    level: int = 0,
    caption: str = "",
    focus: int | None = None,
    layers: Sequence[views.Layer] = (),
    tags: Sequence[tuple[float, float, str]] = (),
    seams: bool = True,
    longest_px: int = 560,
    tallest_px: int | None = None,
) -> views.View:
    """Return a view of one plane of a box (pixels of `level`) with outlines and tile borders."""
    array = sample.images[level]
    shrink = [full / length for full, length in zip(sample.shape, array.shape, strict=True)]
    axes = sides_of(face)
    plane = cut(array, box, face, at)
    found = cut(sample.labels[level], box, face, at)
    over, overlay = [], None
    if len(np.unique(found)) > views.MAX_OUTLINES:
        overlay = views.outline_pixels(found, FOUND_RGB)
    else:
        over = [views.outlines(found, "found")]
    if focus is not None:
        over.append(views.outlines(found == focus, "focus"))
    if seams and sample.core is not None:
        step = [sample.core[axis] / shrink[axis] for axis in axes]
        start = [box[axis].start for axis in axes]
        over.append(views.grid_lines(plane.shape, start, step, "seam"))
    return views.view(
        plane,
        title=title,
        caption=caption,
        limits=sample.limits,
        spacing=[sample.spacing[axis] * shrink[axis] for axis in axes],
        unit_um=sample.unit_um,
        layers=[*layers, *over],
        overlay=overlay,
        tags=tags,
        longest_px=longest_px,
        tallest_px=tallest_px or longest_px,
    )


def projections(sample: Sample) -> dict | None:
    """Return the largest intensity along each axis, read slab by slab; None in 2D."""
    if sample.ndim == 2:
        return None
    level = sample.level(PLANES_PX, (1, 2))
    while (
        level < len(sample.images) - 1 and np.prod(sample.images[level].shape) > PROJECTION_VOXELS
    ):
        level += 1
    array = sample.images[level]
    shrink = [full / length for full, length in zip(sample.shape, array.shape, strict=True)]
    along = {0: np.full(array.shape[1:], -np.inf, np.float32), 1: [], 2: []}
    for start in range(0, array.shape[0], 32):
        slab = np.nan_to_num(np.asarray(array[start : start + 32]).astype(np.float32))
        along[0] = np.maximum(along[0], slab.max(axis=0))
        along[1].append(slab.max(axis=1))
        along[2].append(slab.max(axis=2))
    planes = {0: along[0], 1: np.concatenate(along[1]), 2: np.concatenate(along[2]).T}
    limits = [float(value) for value in np.percentile(along[0], (0.5, 99.8))]
    return {
        "caption": "Largest intensity along each axis, with limits of their own; no outlines, "
        "since objects overlap here.",
        "views": {
            name: views.view(
                planes[face],
                title=f"Maximum projection {name.upper()}",
                limits=limits,
                spacing=[sample.spacing[axis] * shrink[axis] for axis in sides_of(face)],
                unit_um=sample.unit_um,
            )
            for face, name in enumerate(("xy", "xz", "zy"))
        },
    }


def zoom(
    sample: Sample,
    row: int,
    title: str,
    caption: str,
    focus: bool = False,
    centre: np.ndarray | None = None,
) -> list[views.View]:
    """Return close-ups of one object at full resolution: one in 2D, XY and XZ in 3D.

    Around its centre, as wide as the object needs; or around another one, of usual width.
    """
    label = sample.label(row)
    sides = sample.zoom_sides()
    if centre is None:
        centre, sides = sample.centres[row], grown(sample, row)
    box = regions.window(centre, sides, sample.shape)
    shown = []
    for face in sample.faces[:2]:
        at = 0 if face is None else int(np.clip(round(centre[face]), 0, sample.shape[face] - 1))
        where = (
            "" if face is None else f" · {'XY' if face == 0 else 'XZ'}, {sample.axes[face]} = {at}"
        )
        shown.append(
            plane_view(
                sample,
                box,
                face=face,
                at=at,
                title=title + where,
                caption=caption,
                focus=label if focus else None,
            )
        )
    return shown


def grown(sample: Sample, row: int, times: float = 1.5) -> list[float]:
    """Return the sides of a close-up, enlarged when one object is longer than it."""
    sides = list(sample.zoom_sides())
    for axis, name in enumerate(sample.axes):
        first, last = f"bbox_{name}_min", f"bbox_{name}_max"
        length = float(sample.objects[last].iloc[row] - sample.objects[first].iloc[row])
        sides[axis] = min(max(sides[axis], times * length), 4 * ZOOM_PX[1])
    return sides


def zooms(sample: Sample) -> list[views.View]:
    """Return close-ups of typical, crowded and least confident surroundings."""
    if not len(sample.objects):
        return []
    sizes = sample.objects[sample.size_column].to_numpy(float)
    radius = 2.5 * sample.diameter_px[-1] * sample.spacing[-1]
    typical, crowded = regions.typical_and_crowded(sample.centres, sizes, sample.spacing, radius)
    confidence = sample.objects["confidence"].to_numpy(float)
    least = int(np.argmin(confidence))
    groups = [
        zoom(sample, typical, "Typical", "Around an object of median size and neighbourhood."),
        zoom(sample, crowded, "Crowded", "Around the object with most neighbours."),
        zoom(
            sample,
            least,
            "Least confident",
            f"White: object {sample.label(least)}, confidence {confidence[least]:.2f}.",
            focus=True,
        ),
    ]
    return [group[k] for k in range(len(groups[0])) for group in groups]


def unsure(sample: Sample) -> list[views.View]:
    """Return small pictures of the least confident objects."""
    confidence = sample.objects["confidence"].to_numpy(float)
    shown = []
    for row in np.argsort(confidence, kind="stable")[:N_UNSURE]:
        centre = sample.centres[row]
        size = float(sample.objects[sample.size_column].iloc[row])
        own = regions.equivalent_diameter(size, sample.spacing)[-1]
        side = max(2.5 * own, 1.6 * sample.diameter_px[-1], 24)
        box = regions.window(centre, [side] * sample.ndim, sample.shape)
        face = sample.faces[0]
        at = 0 if face is None else int(np.clip(round(centre[0]), 0, sample.shape[0] - 1))
        label = sample.label(row)
        shown.append(
            plane_view(
                sample,
                box,
                face=face,
                at=at,
                title=f"{label}: {confidence[row]:.2f}",
                focus=label,
                seams=False,
                longest_px=160,
            )
        )
    return shown
