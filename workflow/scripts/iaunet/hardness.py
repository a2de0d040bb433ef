"""Objects that are hard to tell apart, and the scores on such a subset of the objects.

All labels here are 0 for background and 1 to n for the true objects; a subset is a bool array
of n + 1 elements, of which the first, background, is False.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from iaunet import metrics

TOUCHING = 0.1
"""Share of its outline that an object of the touching subset has in common with others."""
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""IoU thresholds of mAP(.5:.9)."""


def contact_shares(labels: np.ndarray, n: int) -> np.ndarray:
    """Return which share of the outline of each object lies against other objects, (n + 1,).

    The outline is made of the faces between a voxel of the object and one that is not; faces
    at the border of the image are not known and do not count.

    Examples
    --------
    >>> contact_shares(np.array([[1, 1, 2, 0]]), 2).tolist()
    [0.0, 1.0, 0.5]
    """
    faces, contacts = np.zeros(n + 1), np.zeros(n + 1)
    for axis in range(labels.ndim):
        along = np.moveaxis(labels, axis, 0)
        differ = along[1:] != along[:-1]
        sides = along[:-1][differ], along[1:][differ]
        both = (sides[0] > 0) & (sides[1] > 0)
        for side in sides:
            faces += np.bincount(side, minlength=n + 1)
            contacts += np.bincount(side[both], minlength=n + 1)
    contacts[0] = 0
    return contacts / np.maximum(faces, 1)


def touching(labels: np.ndarray, n: int) -> np.ndarray:
    """Return which objects touch others along more than `TOUCHING` of their outline."""
    return contact_shares(labels, n) > TOUCHING


def neighbour_likeness(centre: np.ndarray, morphology: np.ndarray) -> np.ndarray:
    """Return how much each object of an image differs from its nearest neighbour.

    Parameters
    ----------
    centre : (n + 1, d)
    morphology : (n + 1, m)
        Standardised features, such as `patches.MORPHOLOGY`; rows 0 are not used.

    Returns
    -------
    (n + 1,) float
        Distance of the morphologies; infinite where there is no neighbour, and in row 0.
    """
    found = np.full(len(centre), np.inf)
    if len(centre) > 2:
        _, nearest = cKDTree(centre[1:]).query(centre[1:], k=2)
        other = nearest[np.arange(len(nearest)), (nearest[:, 0] == np.arange(len(nearest))) * 1]
        found[1:] = np.linalg.norm(morphology[1:] - morphology[1:][other], axis=1)
    return found


def look_alike(likeness: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return, per image, the objects that differ from their neighbour less than the median does.

    `likeness` is `neighbour_likeness` of every image; the median is over all their objects.
    """
    known = np.concatenate([one[np.isfinite(one)] for one in likeness] or [np.zeros(0)])
    median = np.median(known) if len(known) else 0.0
    return [one < median for one in likeness]


def owners(true: np.ndarray, predicted: np.ndarray, overlap: metrics.Overlap) -> np.ndarray:
    """Return to which true object each predicted one belongs, right or wrong.

    That is the one it overlaps most (of equal ones, the first in the image), or the nearest
    when it overlaps none: so every prediction belongs to one true object, and the counts of
    subsets that partition the objects add up to those of all.

    Returns
    -------
    int array, one label per element of `overlap.predicted_ids`; 0 where no object is true
    """
    owner = np.zeros(len(overlap.predicted_ids), dtype=np.int64)
    if not len(overlap.true_ids):
        return owner
    ids, first = np.unique(true, return_index=True)
    place = first[np.searchsorted(ids, overlap.pairs[:, 0])]
    best_last = np.lexsort((-place, overlap.shared))
    column = np.searchsorted(overlap.predicted_ids, overlap.pairs[best_last, 1])
    owner[column] = overlap.pairs[best_last, 0]
    stray = np.flatnonzero(owner == 0)
    if len(stray):
        far, nearest = ndimage.distance_transform_edt(true == 0, return_indices=True)
        for k in stray:
            inside = np.flatnonzero(predicted == overlap.predicted_ids[k])
            at = inside[far.ravel()[inside].argmin()]
            owner[k] = true[tuple(axis.ravel()[at] for axis in nearest)]
    return owner


def subset_scores(
    overlap: metrics.Overlap, owner: np.ndarray, subset: np.ndarray
) -> dict[str, float] | None:
    """Return the scores of one image on a subset of its true objects.

    Matched are the pairs of the whole image. TP and FN are counted over the objects of the
    subset, FP over the unmatched predictions that belong to one of them (`owners`): a subset
    of all objects gives the scores of the image, and counts of a partition add up.

    Returns
    -------
    ap50, ap75, map (mean over `THRESHOLDS`), pq (at IoU 0.5), and numbers of objects: n_true,
    merges (predictions that hold two or more true objects and belong to the subset), splits
    (objects of the subset that are cut in pieces). None when the image has no such object.
    """
    n_true = int(subset[overlap.true_ids.astype(np.int64)].sum())
    if not n_true:
        return None
    mine = subset[owner]
    ap, pq = {}, 0.0
    for threshold in THRESHOLDS:
        pairs = metrics.matched_pairs(overlap, threshold)
        hits = pairs[subset[overlap.pairs[pairs, 0].astype(np.int64)]]
        free = ~np.isin(overlap.predicted_ids, overlap.pairs[pairs, 1])
        tp, fp = len(hits), int((free & mine).sum())
        ap[threshold] = tp / (n_true + fp)
        if threshold == 0.5:
            pq = float(metrics.iou(overlap)[hits].sum(dtype=float)) / ((tp + fp + n_true) / 2)
    cut = metrics.cut_in_pieces(overlap).astype(np.int64)
    merged = np.isin(overlap.predicted_ids, metrics.cut_in_pieces(metrics.swapped(overlap)))
    return {
        "ap50": ap[0.5],
        "ap75": ap[0.75],
        "map": float(np.mean(list(ap.values()))),
        "pq": pq,
        "n_true": n_true,
        "merges": int((merged & mine).sum()),
        "splits": int(subset[cut].sum()),
    }
