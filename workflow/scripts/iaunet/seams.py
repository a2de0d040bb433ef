"""Can the tiles be seen in the result? Outlines, counts and sizes at tile faces and elsewhere.

Where tiles agree, nothing of it depends on them: outlines run along their faces as often as along
any other line, and objects near faces are as many and as large as elsewhere. All numbers here are
sums over tiles and objects.
"""

from collections.abc import Sequence

import numpy as np

VISIBLE = 1.2
"""Outlines at faces that are so many times as frequent as elsewhere show the tiles..."""
DEVIATIONS = 5.0
"""... when that is no chance: so many standard deviations above the lines inside of tiles."""


def straight_cuts(outlines: np.ndarray, core_px: Sequence[int]) -> dict[str, object]:
    """Return how often outlines run along tile faces, against the other lines of the grid.

    A line is all places that lie equally far behind the last face, in all tiles: the grid of the
    faces, moved. Outlines of one object are many and alike, so that only other lines tell what
    is chance.

    Parameters
    ----------
    outlines : (axes, longest side) int array
        Summed over all tiles, see `kernels.outlines`.
    core_px : per axis, which line are the faces

    Returns
    -------
    dict
        ``straight_cut_score``: outlines at faces over the mean of the other lines, of all axes
        together; 1 without seams, None without faces or objects. ``outline_at_faces``,
        ``outline_expected``: both counts. ``seams_visible``: the score is high along an axis,
        and higher there than chance and any other line explain.

    Examples
    --------
    >>> straight_cuts(np.array([[4, 6, 5, 5]]), (4,))["straight_cut_score"]
    1.0
    """
    at_faces, expected, visible = 0, 0.0, False
    for counts, core in zip(np.asarray(outlines, dtype=np.int64), core_px, strict=True):
        face, others = int(counts[core - 1]), counts[: core - 1]
        if not len(others):
            continue
        mean, spread = float(others.mean()), float(others.std())
        at_faces, expected = at_faces + face, expected + mean
        excess = face > VISIBLE * mean + DEVIATIONS * spread
        visible |= bool(excess and face > others.max())
    return {
        "straight_cut_score": at_faces / expected if expected else None,
        "outline_at_faces": at_faces,
        "outline_expected": expected,
        "seams_visible": visible,
    }


def near_faces(
    centres: np.ndarray, sizes: np.ndarray, shape: Sequence[int], faces: Sequence[Sequence[float]]
) -> dict[str, object]:
    """Return how many objects lie near tile faces, how many are expected, and how large they are.

    Near is less than the radius of the median object.

    Parameters
    ----------
    centres : (n, axes) px
    sizes : (n,) voxels
    shape : of the image
    faces : per axis, where tiles meet inside of the image, px
    """
    if not len(sizes) or not any(len(places) for places in faces):
        return {"objects_near_faces": None, "near_faces_expected": None, "near_faces_size": None}
    radius = 0.5 * float(np.median(sizes)) ** (1 / len(shape))
    near, far_share = np.zeros(len(sizes), dtype=bool), 1.0
    for axis, places in enumerate(faces):
        at = np.concatenate([centres[:, axis], np.arange(shape[axis])])
        distance = _nearest(at, np.asarray(places, dtype=float) - 0.5)
        near |= distance[: len(sizes)] < radius
        far_share *= float((distance[len(sizes) :] >= radius).mean())
    ratio = None
    if near.any() and not near.all():
        ratio = float(np.median(sizes[near]) / np.median(sizes[~near]))
    return {
        "objects_near_faces": int(near.sum()),
        "near_faces_expected": len(sizes) * (1 - far_share),
        "near_faces_size": ratio,
    }


def _nearest(at: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the distance to the nearest of ascending places; infinite without places."""
    walls = np.concatenate([[-np.inf], places, [np.inf]])
    after = np.searchsorted(walls, at)
    return np.minimum(at - walls[after - 1], walls[after] - at)
