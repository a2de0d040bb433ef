"""Label image and intensity image -> one row of values per object, in bounded memory.

Values are those of ``skimage.measure.regionprops`` on the whole arrays: it is called on the
bounding box of each object, which is all that it looks at.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numba import njit
from scipy.spatial import ConvexHull, QhullError
from skimage.measure import regionprops
from skimage.measure._regionprops import RegionProperties

from iaunet import grid
from iaunet.labels import Extents, extents, merge_extents

log = logging.getLogger("iaunet.features")

# A box above this size, which only a mistaken object has, would take gigabytes to measure.
LARGEST_BOX_PX = 1 << 24

INTENSITY = {
    "mean": "intensity_mean",
    "std": "intensity_std",
    "min": "intensity_min",
    "max": "intensity_max",
}
SHAPE_2D = ("perimeter_px", "eccentricity")
SHAPE_PX = ("equivalent_diameter_px", "axis_major_px", "axis_minor_px", "extent", "solidity")
SHAPE_UM = ("equivalent_diameter_um", "axis_major_um", "axis_minor_um")
PROPERTY = {
    "perimeter_px": "perimeter",
    "eccentricity": "eccentricity",
    "equivalent_diameter_px": "equivalent_diameter_area",
    "axis_major_px": "axis_major_length",
    "axis_minor_px": "axis_minor_length",
    "extent": "extent",
    "equivalent_diameter_um": "equivalent_diameter_area",
    "axis_major_um": "axis_major_length",
    "axis_minor_um": "axis_minor_length",
}


class Readable(Protocol):
    """An array in memory, or one that is read box by box."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, box: grid.Box) -> np.ndarray:
        """Return the values of a box."""
        ...


def object_columns(ndim: int, channel: str, dtype: np.dtype) -> dict[str, str]:
    """Return the columns of `objects.csv` and their types, in order.

    Parameters
    ----------
    ndim : int
        2 or 3; a 2D table has no z columns.
    channel : str
        Name of the measured channel; characters that a column name should not have become
        underscores.
    dtype : np.dtype
        Type of the intensity image: smallest and largest intensity of an integer image are
        integers.
    """
    axes = "zyx"[-ndim:]
    what, unit = ("area", "um2") if ndim == 2 else ("volume", "um3")
    channel = "".join(c if c.isalnum() or c in "._-" else "_" for c in channel)
    exact = {"u": "uint64", "i": "int64"}.get(np.dtype(dtype).kind, "float64")
    return {
        "image": "str",
        "label": "uint64",
        **{f"{axis}_um": "float64" for axis in axes},
        **{f"{axis}_px": "float64" for axis in axes},
        f"{what}_px": "int64",
        f"{what}_{unit}": "float64",
        **{f"bbox_{axis}_{end}": "int64" for axis in axes for end in ("min", "max")},
        "confidence": "float64",
        **{
            f"{name}_intensity_{channel}": exact if name in ("min", "max") else "float64"
            for name in INTENSITY
        },
        **dict.fromkeys((*(SHAPE_2D if ndim == 2 else ()), *SHAPE_PX, *SHAPE_UM), "float64"),
        "touches_border": "bool",
        "crosses_seam": "bool",
        "n_tiles": "int64",
    }


def measure_objects(
    labels: Readable,
    image: Readable,
    *,
    block_px: Sequence[int],
    pixel_um: Sequence[float] | None,
    channel: str,
) -> dict[str, np.ndarray]:
    """Measure every object of a label image.

    Memory depends on the block and the number of objects, not on the size of the image. An
    object whose bounding box has more than `LARGEST_BOX_PX` voxels gets no shape (NaN).

    Parameters
    ----------
    labels, image : arrays, or objects that are read box by box, of equal shape
        Labels are integers, 0 is background; axes are (z,) y, x.
    block_px : sequence of int
        Size of the blocks in which the image is walked.
    pixel_um : sequence of float or None
        Micrometres per pixel and axis; columns in micrometres are NaN without.
    channel : str
        Name of the channel for the column names.

    Returns
    -------
    dict of arrays, one value per object, by ascending label
        The columns of `object_columns` but `image`, `confidence`, `crosses_seam`, `n_tiles`.
        Boxes are half open: ``bbox_y_min <= y < bbox_y_max``. The solidity of a 3D object that
        lies in one plane is NaN: its hull has no volume.
    """
    if tuple(labels.shape) != tuple(image.shape):
        raise ValueError(f"labels have the shape {labels.shape}, the image {image.shape}")
    shape = tuple(labels.shape)
    ndim = len(shape)
    spacing = np.full(ndim, np.nan) if pixel_um is None else np.array(pixel_um, dtype=float)
    found = merge_extents(
        (
            extents(np.asarray(labels[tile.core]), grid.origin(tile.core))
            for tile in grid.tiles(shape, block_px)
        ),
        ndim,
    )
    types = object_columns(ndim, channel, image.dtype)
    table = _placed(found, shape, spacing, types)
    intensity = [name for name in types if "_intensity_" in name]
    shapes = [name for name in PROPERTY if name in types]
    for name in (*intensity, *shapes, "solidity"):
        missing = np.nan if types[name] == "float64" else 0
        table[name] = np.full(len(found.ids), missing, dtype=types[name])
    for k, props, props_um in _regions(labels, image, found, block_px, spacing):
        table["solidity"][k] = _solidity(props)
        for name, source in zip(intensity, INTENSITY.values(), strict=True):
            table[name][k] = props[source]
        for name in shapes:
            source = props_um if name.endswith("_um") else props
            if source is not None:
                table[name][k] = source[PROPERTY[name]]
    if len(set(spacing.tolist())) == 1:
        for name in SHAPE_UM:
            table[name] = table[name.removesuffix("um") + "px"] * spacing[0]
    for k in _oversized(found):
        log.warning(
            "object %d: its bounding box of %s px is too large to measure its shape",
            found.ids[k],
            " x ".join(str(side) for side in found.stops[k] - found.starts[k]),
        )
        values = _streamed_intensity(labels, image, found, k, block_px)
        for name, value in zip(intensity, values, strict=True):
            table[name][k] = value
    return table


def _placed(
    found: Extents, shape: Sequence[int], spacing: np.ndarray, types: dict[str, str]
) -> dict[str, np.ndarray]:
    """Return the columns that follow from extents: centroid, size, box, border."""
    centroid = found.sums / found.areas[:, None]
    table = {"label": found.ids}
    for k, axis in enumerate("zyx"[-len(shape) :]):
        table[f"{axis}_px"] = centroid[:, k]
        table[f"{axis}_um"] = centroid[:, k] * spacing[k]
        table[f"bbox_{axis}_min"] = found.starts[:, k]
        table[f"bbox_{axis}_max"] = found.stops[:, k]
    in_px, in_um = (name for name in types if name.startswith(("area_", "volume_")))
    table[in_px] = found.areas
    table[in_um] = found.areas * spacing.prod()
    table["touches_border"] = ((found.starts == 0) | (found.stops == np.array(shape))).any(axis=1)
    return table


def _oversized(found: Extents) -> np.ndarray:
    return np.flatnonzero((found.stops - found.starts).prod(axis=1) > LARGEST_BOX_PX)


def _windows(
    found: Extents, shape: Sequence[int], block_px: Sequence[int]
) -> Iterator[tuple[grid.Box, np.ndarray]]:
    """Yield boxes to read and the objects inside, at most two blocks long or one object."""
    sides = found.stops - found.starts
    small = (sides <= np.array(block_px)).all(axis=1)
    for k in np.setdiff1d(np.flatnonzero(~small), _oversized(found)):
        yield tuple(map(slice, found.starts[k].tolist(), found.stops[k].tolist())), np.array([k])
    small = np.flatnonzero(small)
    place = tuple((found.starts[small] // np.array(block_px)).T)
    block = np.ravel_multi_index(place, grid.grid_shape(shape, block_px)) if len(small) else small
    order = np.argsort(block, kind="stable")
    first = np.flatnonzero(np.diff(block[order])) + 1
    for members in np.split(small[order], first):
        if len(members):
            start, stop = found.starts[members].min(axis=0), found.stops[members].max(axis=0)
            yield tuple(map(slice, start.tolist(), stop.tolist())), members


def _regions(
    labels: Readable,
    image: Readable,
    found: Extents,
    block_px: Sequence[int],
    spacing: np.ndarray,
) -> Iterator[tuple[int, RegionProperties, RegionProperties | None]]:
    """Yield position, properties in pixels and, of anisotropic pixels, those in micrometres."""
    boxes = found.boxes()
    for window, members in _windows(found, labels.shape, block_px):
        some_labels, some_image = np.asarray(labels[window]), np.asarray(image[window])
        for k in members:
            box = grid.shift(boxes[k], grid.origin(window))
            region = (some_labels[box] == found.ids[k]).astype(np.uint8)
            (props,) = regionprops(region, some_image[box])
            props_um = None
            if len(set(spacing.tolist())) > 1 and np.isfinite(spacing).all():
                (props_um,) = regionprops(region, spacing=tuple(spacing.tolist()))
            yield k, props, props_um


def _solidity(props: RegionProperties) -> float:
    hull = hull_size_px(props.image)
    return props.area / hull if hull else math.nan


def hull_size_px(mask: np.ndarray) -> int:
    """Return the number of voxels in the convex hull of a mask; 0 when a 3D hull is flat.

    The voxels that ``skimage.morphology.convex_hull_image`` finds, several times as fast: it
    tests each voxel against each facet, where one interval per row tells the same.
    """
    corners = _row_ends(mask)
    if mask.ndim == 3:
        try:
            hull = ConvexHull(corners)
        except QhullError:
            return 0
        corners = hull.points[hull.vertices]
    # A voxel is the centres of its faces, as in skimage; in halves, to name each place once,
    # since repeated points can trouble qhull.
    faces = np.concatenate([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)]) + 1
    halves = (2 * corners.astype(int)[:, None] + faces).reshape(-1, mask.ndim)
    box = tuple(2 * length + 1 for length in mask.shape)
    places = np.unravel_index(np.unique(np.ravel_multi_index(tuple(halves.T), box)), box)
    planes = ConvexHull((np.stack(places, axis=1) - 1) / 2).equations
    if mask.ndim == 2:
        planes = np.insert(planes, 0, 0, axis=1)
    return _count_inside(planes, mask.shape if mask.ndim == 3 else (1, *mask.shape))


def _row_ends(mask: np.ndarray) -> np.ndarray:
    """Return the first and last voxel of each row, which span the same hull as all voxels."""
    rows = mask.any(axis=-1)
    place = np.argwhere(rows)
    first = mask.argmax(axis=-1)[rows]
    last = mask.shape[-1] - 1 - mask[..., ::-1].argmax(axis=-1)[rows]
    return np.concatenate([np.column_stack([place, side]) for side in (first, last)])


@njit(cache=True, nogil=True)
def _count_inside(planes: np.ndarray, shape: tuple[int, int, int]) -> int:
    """Count the lattice points of a box that lie below all planes, with skimage's tolerance."""
    count = 0
    for z in range(shape[0]):
        for y in range(shape[1]):
            low, high = 0, shape[2] - 1
            for k in range(len(planes)):
                slope = planes[k, 2]
                room = 1e-10 - (planes[k, 0] * z + planes[k, 1] * y + planes[k, 3])
                if abs(slope) < 1e-12:
                    if room <= 0:
                        high = -1
                elif slope > 0:
                    high = min(high, math.ceil(min(room / slope, shape[2])) - 1)
                else:
                    low = max(low, math.floor(max(room / slope, -1)) + 1)
                if low > high:
                    break
            count += max(0, high - low + 1)
    return count


def _streamed_intensity(
    labels: Readable, image: Readable, found: Extents, k: int, block_px: Sequence[int]
) -> tuple[float, float, float, float]:
    """Return mean, standard deviation, minimum and maximum of one object, block by block."""
    box = found.boxes()[k]
    n, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for index in grid.tiles_meeting(labels.shape, block_px, box):
        core = grid.tile(labels.shape, block_px, index).core
        values = np.asarray(image[core])[np.asarray(labels[core]) == found.ids[k]]
        if len(values):
            # Chan et al. 1983: moments of two parts give those of their union.
            step = values.mean(dtype=float) - mean
            squares += values.var(dtype=float) * len(values)
            squares += step**2 * n * len(values) / (n + len(values))
            n += len(values)
            mean += step * len(values) / n
            low, high = min(low, values.min()), max(high, values.max())
    return mean, math.sqrt(squares / n), low, high
