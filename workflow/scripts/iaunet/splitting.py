"""True objects longer than the network looks -> compact parts, which it can learn to find.

A neurite or a fibre has no centre that a network of bounded reach could point at. Its parts have:
every part is around a place where the object is thick. Whether parts are one object is decided
later, on all of them, see `joining`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed


def split(
    labels: np.ndarray, n: int, longest_px: float, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the parts of all objects, and the object of each part.

    The middle of the first part is where the object is thickest, that of the next where it is
    thickest at least `longest_px` / 2 away from all before, and so on until no voxel is that far
    from all. A voxel belongs to the middle whose flood reaches it first, inside the object.

    Parameters
    ----------
    labels : int array
        1..n, at most 0 elsewhere.
    longest_px : objects whose box is shorter along every axis stay whole.
    spacing : relative voxel lengths, for distances.

    Returns
    -------
    parts : int32 array, shape of `labels`
        1..m; where there is no object the value of `labels`.
    of_part : (m + 1,) int32
        The object of each part; the first is 0.
    """
    parts = np.minimum(labels, 0).astype(np.int32)
    of_part = [0]
    for label, box in enumerate(ndimage.find_objects(np.maximum(labels, 0), n), start=1):
        if box is None:
            continue
        inside = labels[box] == label
        length = max((s.stop - s.start) * w for s, w in zip(box, spacing, strict=True))
        found = inside.astype(np.int32)
        if length > longest_px:
            found = _parts(inside, longest_px, spacing)
        parts[box][inside] = found[inside] + len(of_part) - 1
        of_part += [label] * int(found.max())
    return parts, np.array(of_part, dtype=np.int32)


def _parts(inside: np.ndarray, longest_px: float, spacing: Sequence[float]) -> np.ndarray:
    """Return the parts 1..m of one object."""
    points = np.argwhere(inside)
    away = (points * spacing).astype(np.float32)
    thickest = np.argsort(-depths(inside, spacing)[inside], kind="stable")
    far = np.full(len(points), np.inf, dtype=np.float32)
    middles = np.zeros(inside.shape, dtype=np.int32)
    for row in thickest:
        if far[row] >= (longest_px / 2) ** 2:
            middles[tuple(points[row])] = middles.max() + 1
            np.minimum(far, ((away - away[row]) ** 2).sum(1), out=far)
    found = watershed(np.zeros(inside.shape, np.uint8), middles, mask=inside, connectivity=1)
    # What no flood reaches is a piece of its own, too small to have a middle.
    rest, n_rest = ndimage.label(inside & (found == 0))
    return np.where(rest > 0, rest + found.max(), found) if n_rest else found


def depths(inside: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the distance of every voxel of an object to its outline; the box's side is one."""
    distance = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)
    return distance[(slice(1, -1),) * inside.ndim]
