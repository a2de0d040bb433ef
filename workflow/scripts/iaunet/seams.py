"""Can the tiles be seen in the result? Outlines, counts and sizes at tile faces and elsewhere.

Where tiles agree, nothing of it depends on them: outlines run along their faces as often as along
any other line, and objects near faces are as many and as large as elsewhere. All numbers here are
sums over tiles and objects.
"""

import math
from collections.abc import Sequence

import numpy as np

VISIBLE = 1.1
"""Outlines at faces that are so many times as frequent as elsewhere show the tiles..."""
DEVIATIONS = 4.0
"""... when that is no chance: so many standard deviations of a Poisson count."""


def straight_cuts(outlines: np.ndarray) -> dict[str, object]:
    """Return how often outlines run along tile faces, against lines inside of tiles.

    Parameters
    ----------
    outlines : (axes, 4) int array
        Summed over all tiles: outlines and pairs of voxels at faces, and elsewhere.

    Returns
    -------
    dict
        ``straight_cut_score``: outlines at faces over those expected, 1 without seams, None
        where no object meets a face. ``outline_at_faces``, ``outline_expected``: both counts.

    Examples
    --------
    >>> straight_cuts(np.array([[12, 100, 60, 500], [0, 0, 7, 90]]))["straight_cut_score"]
    1.0
    """
    at_face, pairs, inside, pairs_inside = np.asarray(outlines, dtype=np.int64).T
    rate = np.divide(inside, pairs_inside, out=np.zeros(len(inside)), where=pairs_inside > 0)
    expected = float((pairs * rate).sum())
    score = float(at_face.sum()) / expected if expected else None
    return {
        "straight_cut_score": score,
        "outline_at_faces": int(at_face.sum()),
        "outline_expected": expected,
    }


def are_visible(cuts: dict[str, object]) -> bool:
    """Return whether the score of `straight_cuts` says that tiles can be seen."""
    expected = cuts["outline_expected"]
    excess = cuts["outline_at_faces"] - expected
    return (cuts["straight_cut_score"] or 0) > VISIBLE and excess > DEVIATIONS * math.sqrt(expected)


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
