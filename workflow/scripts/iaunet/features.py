"""Label image and intensity image -> one row of values per object, in bounded memory.

Values are those of ``skimage.measure.regionprops`` on the whole arrays. Each object is measured
in its own bounding box, however the image is cut in blocks.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from iaunet import grid, shapes
from iaunet.grid import volume
from iaunet.labels import extents

log = logging.getLogger("iaunet.features")

LARGEST_BOX_PX = 1 << 24
"""Of an object with a larger box only what can be summed block by block is measured."""
NOT_OF_LARGE = "perimeter and solidity"

INTENSITY = ("mean", "std", "min", "max")
SHAPE_2D = ("perimeter_px", "eccentricity")
SHAPE_PX = ("equivalent_diameter_px", "axis_major_px", "axis_minor_px", "extent", "solidity")
SHAPE_UM = ("equivalent_diameter_um", "axis_major_um", "axis_minor_um")


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

    Each block is read once, and what can be added up is added up over the blocks. Perimeter and
    solidity of an object that lies in several blocks are those of its own crop, read once more;
    one whose bounding box has more than `LARGEST_BOX_PX` voxels gets none (NaN). Memory depends
    on the block and the number of objects, not on the size of the image.

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
    spacing = np.full(len(shape), np.nan) if pixel_um is None else np.array(pixel_um, dtype=float)
    types = object_columns(len(shape), channel, image.dtype)
    pieces = [
        _pieces(labels[tile.core], image[tile.core], tile.core, shape)
        for tile in grid.tiles(shape, block_px)
    ]
    found = _joined({name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]})
    sides = found["stop"] - found["start"]
    large = sides.prod(axis=1) > LARGEST_BOX_PX
    for k in np.flatnonzero(large):
        size = " x ".join(str(side) for side in sides[k])
        name = found["id"][k]
        log.warning("object %d: its box of %s px is too large for %s", name, size, NOT_OF_LARGE)
    some = np.flatnonzero(~found["whole"] & ~large)
    for window, chosen in windows(found["start"][some], found["stop"][some], block_px):
        origin, members = grid.origin(window), some[chosen]
        where = (
            found["id"][members],
            found["start"][members] - origin,
            found["stop"][members] - origin,
        )
        found["perimeter"][members], found["hull"][members] = _outlined(labels[window], *where)
    intensity = [name for name in types if "_intensity_" in name]
    brightness = found["mean"], found["std"], found["low"], found["high"]
    return {
        **_placed(found, shape, spacing, types),
        **_shaped(found, spacing),
        **dict(zip(intensity, brightness, strict=True)),
    }


def _pieces(
    labels: np.ndarray, image: np.ndarray, block: grid.Box, shape: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return what a block shows of each object in it, one row per object.

    Sums of coordinates are counted from the start of the piece.
    """
    labels, image = np.asarray(labels), np.asarray(image)
    found = extents(labels, (0,) * labels.ndim)
    where = found.ids, found.starts, found.stops
    boxes = _three(labels, *where)
    total, squares, ends = shapes.brightness(boxes[0], volume(image), *boxes[1:], found.areas)
    inner = np.array(
        [(side.start > 0, side.stop < n) for side, n in zip(block, shape, strict=True)]
    )
    at_face = np.stack([found.starts == 0, found.stops == np.array(labels.shape)], axis=2)
    whole = ~(at_face & inner).any(axis=(1, 2))
    perimeter, hull = np.full((2, len(whole)), np.nan)
    perimeter[whole], hull[whole] = _outlined(labels, *(part[whole] for part in where))
    origin = np.array(grid.origin(block))
    return {
        "id": found.ids,
        "start": found.starts + origin,
        "stop": found.stops + origin,
        "sums": shapes.coordinate_sums(*boxes).astype(float),
        "total": total,
        "squares": squares,
        "low": ends[:, 0],
        "high": ends[:, 1],
        "whole": whole,
        "perimeter": perimeter,
        "hull": hull,
    }


def _joined(pieces: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return one row per object from one row per piece, by ascending id."""
    order = np.argsort(pieces["id"], kind="stable")
    pieces = {name: values[order] for name, values in pieces.items()}
    ids, first, of_object, n_pieces = np.unique(
        pieces["id"], return_index=True, return_inverse=True, return_counts=True
    )

    def merged(how: np.ufunc, values: np.ndarray) -> np.ndarray:
        return how.reduceat(values, first, axis=0) if len(first) else values

    start, stop = merged(np.minimum, pieces["start"]), merged(np.maximum, pieces["stop"])
    sums = merged(np.add, shapes.moved(pieces["sums"], pieces["start"] - start[of_object]))
    mean = merged(np.add, pieces["total"]) / sums[:, 0]
    # Chan et al. 1983: squares of the parts about their means give those of the whole.
    size = pieces["sums"][:, 0]
    apart = size * (pieces["total"] / size - mean[of_object]) ** 2
    squares = merged(np.add, pieces["squares"] + np.where(n_pieces[of_object] > 1, apart, 0))
    whole = pieces["whole"][first] & (n_pieces == 1)
    return {
        "id": ids,
        "area": np.rint(sums[:, 0]).astype(np.int64),
        "start": start,
        "stop": stop,
        "sums": sums,
        "mean": mean,
        "std": np.sqrt(squares / sums[:, 0]),
        "low": merged(np.minimum, pieces["low"]),
        "high": merged(np.maximum, pieces["high"]),
        "whole": whole,
        # Of an object in several pieces, a piece that touches no other block is not the object.
        "perimeter": np.where(whole, pieces["perimeter"][first], np.nan),
        "hull": np.where(whole, pieces["hull"][first], np.nan),
    }


def _shaped(found: Mapping[str, np.ndarray], spacing: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of shape."""
    ndim, known = len(spacing), np.isfinite(spacing).all()
    area, hull = found["area"], found["hull"]
    covariance = shapes.covariance(found["sums"], ndim)
    solid = np.divide(area, hull, out=np.full(len(area), np.nan), where=hull > 0)
    table = {"solidity": solid, "extent": area / (found["stop"] - found["start"]).prod(axis=1)}
    for unit, scale in (("px", np.ones(ndim)), ("um", spacing)):
        diameter = shapes.equivalent_diameter(area * scale.prod(), ndim)
        major = minor = np.full(len(area), np.nan)
        if unit == "px" or known:
            major, minor = shapes.axis_lengths(covariance * np.outer(scale, scale))
        table[f"equivalent_diameter_{unit}"] = diameter
        table[f"axis_major_{unit}"], table[f"axis_minor_{unit}"] = major, minor
    if ndim == 2:
        table["eccentricity"] = shapes.eccentricity(table["axis_major_px"], table["axis_minor_px"])
        table["perimeter_px"] = found["perimeter"]
    return table


def _placed(
    found: Mapping[str, np.ndarray],
    shape: Sequence[int],
    spacing: np.ndarray,
    types: Mapping[str, str],
) -> dict[str, np.ndarray]:
    """Return the columns of name, place, size, box and border."""
    start, stop = found["start"], found["stop"]
    centroid = start + found["sums"][:, 4 - len(shape) : 4] / found["sums"][:, :1]
    table = {"label": found["id"]}
    for k, axis in enumerate("zyx"[-len(shape) :]):
        table[f"{axis}_px"] = centroid[:, k]
        table[f"{axis}_um"] = centroid[:, k] * spacing[k]
        table[f"bbox_{axis}_min"] = start[:, k]
        table[f"bbox_{axis}_max"] = stop[:, k]
    in_px, in_um = (name for name in types if name.startswith(("area_", "volume_")))
    table[in_px] = found["area"]
    table[in_um] = found["area"] * spacing.prod()
    table["touches_border"] = ((start == 0) | (stop == np.array(shape))).any(axis=1)
    return table


def n_too_large(table: Mapping[str, np.ndarray]) -> int:
    """Return how many objects of a table are too large for `NOT_OF_LARGE`."""
    axes = [name[5] for name in table if name.startswith("bbox_") and name.endswith("_min")]
    sides = (np.asarray(table[f"bbox_{a}_max"]) - table[f"bbox_{a}_min"] for a in axes)
    return int((math.prod(sides) > LARGEST_BOX_PX).sum())


def windows(
    starts: np.ndarray, stops: np.ndarray, block_px: Sequence[int]
) -> Iterator[tuple[grid.Box, np.ndarray]]:
    """Yield boxes to read and which objects, given by their boxes (n, axes), are inside.

    Objects of one block are read together, and so are those that cross the same faces of it: a
    strip along the face. Those longer than a block are read alone.
    """
    first, last = starts // block_px, (stops - 1) // block_px
    alone = ((stops - starts) > block_px).any(axis=1)
    key = np.column_stack([first, last > first, np.where(alone, np.arange(len(starts)), -1)])
    _, group = np.unique(key, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members):
            start, stop = starts[members].min(axis=0), stops[members].max(axis=0)
            yield tuple(map(slice, start.tolist(), stop.tolist())), members


def _three(
    labels: np.ndarray, ids: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return labels, their ids and their boxes with three axes, as `shapes` takes them."""
    lead = np.zeros((len(ids), 3 - labels.ndim), dtype=np.int64)
    starts, stops = np.column_stack([lead, starts]), np.column_stack([lead + 1, stops])
    return volume(labels), ids.astype(labels.dtype), starts, stops


def _outlined(
    labels: np.ndarray, ids: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return perimeters (NaN in 3D) and voxels of the convex hulls of objects in these labels."""
    counts, hull = shapes.outlines(*_three(labels, ids, starts, stops), labels.ndim)
    perimeter = shapes.perimeter(counts) if labels.ndim == 2 else np.full(len(ids), np.nan)
    return perimeter, hull
