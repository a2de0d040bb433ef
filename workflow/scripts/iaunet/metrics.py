"""Predicted and true labels -> scores, from a sparse table of overlaps.

Counts are those of ``stardist.matching.matching``; what it cannot do is an image whose dense
table of true times predicted objects does not fit in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from iaunet import pairs

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
RATIOS = (
    "ap50",
    "ap75",
    "ap_mean",
    "f1_50",
    "precision_50",
    "recall_50",
    "pq",
    "aji",
    "split_rate",
    "merge_rate",
    "foreground_iou",
)
COUNTS = ("n_true", "tp_50", "fp_50", "fn_50")
"""Keys of `accuracy` that are scores, and those that are numbers of objects."""
CHUNK_PX = 1 << 20


@dataclass(frozen=True)
class Overlap:
    """Which true and predicted objects share how many voxels.

    Attributes
    ----------
    true_ids, predicted_ids : uint64 arrays, ascending
        Every object that occurs; 0 is background and no object.
    true_areas, predicted_areas : int64 arrays
        Voxels of each, overlapping or not.
    pairs : uint64 array, shape (n, 2)
        True id, predicted id of the objects that share at least a voxel; rows sorted.
    shared : int64 array, shape (n,)
        Voxels that each pair shares.
    """

    true_ids: np.ndarray
    true_areas: np.ndarray
    predicted_ids: np.ndarray
    predicted_areas: np.ndarray
    pairs: np.ndarray
    shared: np.ndarray


def overlap(true: np.ndarray, predicted: np.ndarray) -> Overlap:
    """Count the voxels that true and predicted objects share, in one pass.

    Memory grows with the number of touching pairs, never with true times predicted objects.

    Parameters
    ----------
    true, predicted : integer arrays, equal shapes
        Labels; 0 is background, ids need not be consecutive and may exceed 2**32.

    Examples
    --------
    >>> found = overlap(np.array([1, 1, 0, 2]), np.array([7, 0, 0, 7]))
    >>> found.pairs.tolist(), found.shared.tolist()
    ([[1, 7], [2, 7]], [1, 1])
    """
    if true.shape != predicted.shape:
        raise ValueError(f"labels differ in shape: true {true.shape}, predicted {predicted.shape}")
    for name, labels in (("true", true), ("predicted", predicted)):
        if labels.dtype.kind not in "uib":
            raise ValueError(f"{name} labels must be integers, got {labels.dtype}")
        if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
            raise ValueError(f"{name} labels must not be negative, got {labels.min()}")
    keys, counts, filled = pairs.table()
    # Chunks of one type: one compiled function, and no copy of the whole array.
    chunks = np.nditer(
        [true, predicted],
        flags=["external_loop", "buffered", "delay_bufalloc", "zerosize_ok"],
        op_flags=[["readonly"], ["readonly"]],
        op_dtypes=[np.uint64, np.uint64],
        casting="unsafe",
        order="C",
        buffersize=CHUNK_PX,
    )
    chunks.reset()
    for some_true, some_predicted in chunks:
        line = (1, 1, len(some_true))
        keys, counts, filled = pairs.add(
            np.ascontiguousarray(some_true).reshape(line),
            np.ascontiguousarray(some_predicted).reshape(line),
            pairs.NOWHERE,
            keys,
            counts,
            filled,
        )
    occupied = counts[:, 0] > 0
    return _overlap(keys[occupied], counts[occupied, 0])


def where_annotated(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return true and predicted labels with 0 where nothing is annotated (true is -1).

    Predicted objects whose larger part lies there are left out: nobody knows what they are.

    Examples
    --------
    >>> true, predicted = where_annotated(np.array([1, 0, -1, -1]), np.array([5, 6, 6, 6]))
    >>> true.tolist(), predicted.tolist()
    ([1, 0, 0, 0], [5, 0, 0, 0])
    """
    unknown = true < 0
    if not unknown.any():
        return true, predicted
    ids, place = np.unique(predicted, return_inverse=True)
    place = place.reshape(predicted.shape)
    n_unknown = np.bincount(place[unknown], minlength=len(ids))
    ignored = 2 * n_unknown > np.bincount(place.ravel())
    return np.where(unknown, 0, true), np.where(unknown | ignored[place], 0, predicted)


def merge_overlaps(overlaps: Iterable[Overlap]) -> Overlap:
    """Return the overlap of an image from those of blocks that partition it."""
    keys = [np.zeros((0, 2), dtype=np.uint64)]
    counts = [np.zeros(0, dtype=np.int64)]
    for one in overlaps:
        keys.append(one.pairs)
        counts.append(one.shared)
        for axis, (ids, areas) in enumerate(
            ((one.true_ids, one.true_areas), (one.predicted_ids, one.predicted_areas))
        ):
            alone = np.zeros((len(ids), 2), dtype=np.uint64)
            alone[:, axis] = ids
            matched, position = np.unique(one.pairs[:, axis], return_inverse=True)
            rest = areas.copy()
            rest[np.searchsorted(ids, matched)] -= _sums(position, one.shared, len(matched))
            keys.append(alone[rest > 0])
            counts.append(rest[rest > 0])
    return _overlap(np.concatenate(keys), np.concatenate(counts))


def match_counts(
    overlap: Overlap, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count matched, false and missed objects for each IoU threshold.

    An assignment of true to predicted objects with as many pairs of IoU >= threshold as
    possible; above 0.5 it is unique.

    Returns
    -------
    tp, fp, fn : int64 arrays, one number per threshold
    """
    if min(thresholds, default=1) <= 0:
        raise ValueError(f"IoU thresholds must be above 0, got {tuple(thresholds)}")
    tp = np.array([len(matched_pairs(overlap, t)) for t in thresholds], dtype=np.int64)
    return tp, len(overlap.predicted_ids) - tp, len(overlap.true_ids) - tp


def pooled(counts: Sequence[tuple]) -> float | list[float | None] | None:
    """Return TP / (TP + FP + FN) of the summed counts of several images.

    Parameters
    ----------
    counts : sequence of (tp, fp, fn)
        Numbers, or arrays with one number per threshold as `match_counts` returns them.

    Returns
    -------
    float or list of float
        None stands where there is neither a true nor a predicted object.
    """
    tp, fp, fn = (np.sum([one[k] for one in counts], axis=0) for k in range(3))
    if np.ndim(tp) == 0:
        return _ratio(tp, tp + fp + fn)
    return [_ratio(*pair) for pair in zip(tp, tp + fp + fn, strict=True)]


def accuracy(overlap: Overlap) -> dict[str, object]:
    """Return all scores of one image as plain numbers for JSON.

    AP at a threshold is TP / (TP + FP + FN), as in stardist (its `accuracy`) and the Data
    Science Bowl 2018. With neither a true nor a predicted object every ratio is None
    (undefined: leave it out of a mean); with no match but some object it is 0.
    `split_rate` is None without true, `merge_rate` None without predicted objects.

    ``pq`` is panoptic quality at 0.5 (Kirillov et al. 2019, eq. 1), ``aji`` the aggregated
    Jaccard index, see `aggregated_jaccard`; the rates are those of `split_rate` and `merge_rate`.
    """
    tp, fp, fn = match_counts(overlap, THRESHOLDS)
    ap = pooled([(tp, fp, fn)])
    tp_50, fp_50, fn_50 = (int(count[THRESHOLDS.index(0.5)]) for count in (tp, fp, fn))
    n_objects = tp_50 + fp_50 + fn_50
    matched_iou = iou(overlap)[matched_pairs(overlap, 0.5)]

    def or_none(value: float) -> float | None:
        return float(value) if n_objects else None

    return {
        "ap50": ap[THRESHOLDS.index(0.5)],
        "ap75": ap[THRESHOLDS.index(0.75)],
        "ap_mean": or_none(np.mean(ap) if n_objects else 0),
        "ap": ap,
        "f1_50": or_none(2 * tp_50 / max(2 * tp_50 + fp_50 + fn_50, 1)),
        "precision_50": or_none(tp_50 / max(tp_50 + fp_50, 1)),
        "recall_50": or_none(tp_50 / max(tp_50 + fn_50, 1)),
        "pq": or_none(matched_iou.sum() / max(tp_50 + fp_50 / 2 + fn_50 / 2, 0.5)),
        "aji": aggregated_jaccard(overlap),
        "split_rate": split_rate(overlap),
        "merge_rate": merge_rate(overlap),
        "foreground_iou": foreground_iou([overlap]),
        "n_true": len(overlap.true_ids),
        "tp_50": tp_50,
        "fp_50": fp_50,
        "fn_50": fn_50,
    }


def aggregated_jaccard(overlap: Overlap) -> float | None:
    """Return the aggregated Jaccard index (Kumar et al. 2017, algorithm 1).

    Each true object takes the predicted one of largest IoU, which several may take (the
    definition of MoNuSeg); unions of the pairs, and the areas of all objects that are in
    no pair, are the denominator. Of equal IoU the larger overlap counts, then the lower id.
    None without any object.
    """
    true_area, predicted_area = _areas_of_pairs(overlap)
    iou = overlap.shared / (true_area + predicted_area - overlap.shared)
    best_first = np.lexsort((overlap.pairs[:, 1], -overlap.shared, -iou, overlap.pairs[:, 0]))
    taken_true, first = np.unique(overlap.pairs[best_first, 0], return_index=True)
    best = best_first[first]
    shared = overlap.shared[best].sum()
    union = (true_area[best] + predicted_area[best]).sum() - shared
    for ids, areas, taken in (
        (overlap.true_ids, overlap.true_areas, taken_true),
        (overlap.predicted_ids, overlap.predicted_areas, overlap.pairs[best, 1]),
    ):
        union += areas[~np.isin(ids, taken)].sum()
    return _ratio(shared, union)


def split_rate(overlap: Overlap) -> float | None:
    """Return the share of true objects that the prediction cut in pieces.

    Cut in pieces: at least two predicted objects lie in it with half of their area or more
    and each covers a tenth of it or more. None without true objects.
    """
    return _ratio(len(cut_in_pieces(overlap)), len(overlap.true_ids))


def cut_in_pieces(overlap: Overlap) -> np.ndarray:
    """Return the ids of the true objects that `split_rate` counts, ascending."""
    true_area, predicted_area = _areas_of_pairs(overlap)
    piece = (2 * overlap.shared >= predicted_area) & (10 * overlap.shared >= true_area)
    ids, n_pieces = np.unique(overlap.pairs[piece, 0], return_counts=True)
    return ids[n_pieces >= 2]


def merge_rate(overlap: Overlap) -> float | None:
    """Return the share of predicted objects that swallowed two or more true ones.

    The rule of `split_rate` with the roles exchanged. None without predicted objects.
    """
    return split_rate(swapped(overlap))


def swapped(overlap: Overlap) -> Overlap:
    """Return the overlap with the roles of true and predicted objects exchanged."""
    return Overlap(
        true_ids=overlap.predicted_ids,
        true_areas=overlap.predicted_areas,
        predicted_ids=overlap.true_ids,
        predicted_areas=overlap.true_areas,
        pairs=overlap.pairs[:, ::-1],
        shared=overlap.shared,
    )


def foreground_iou(overlaps: Sequence[Overlap]) -> float | None:
    """Return the IoU of all object voxels of some images, whichever object they belong to."""
    shared = sum(int(one.shared.sum()) for one in overlaps)
    areas = sum(int(one.true_areas.sum() + one.predicted_areas.sum()) for one in overlaps)
    return _ratio(shared, areas - shared)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _sums(group: np.ndarray, values: np.ndarray, n_groups: int) -> np.ndarray:
    total = np.zeros(n_groups, dtype=np.int64)
    np.add.at(total, group, values)
    return total


def _overlap(keys: np.ndarray, counts: np.ndarray) -> Overlap:
    """Return the overlap from rows (true id or 0, predicted id or 0) that may repeat."""
    sides = []
    for axis in range(2):
        some = keys[:, axis] > 0
        ids, position = np.unique(keys[some, axis], return_inverse=True)
        sides.append((ids, _sums(position, counts[some], len(ids))))
    both = (keys > 0).all(axis=1)
    keys, counts = keys[both], counts[both]
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, counts = keys[order], counts[order]
    is_first = np.ones(len(keys), dtype=bool)
    is_first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    shared = _sums(np.cumsum(is_first) - 1, counts, np.count_nonzero(is_first))
    (true_ids, true_areas), (predicted_ids, predicted_areas) = sides
    return Overlap(true_ids, true_areas, predicted_ids, predicted_areas, keys[is_first], shared)


def _areas_of_pairs(overlap: Overlap) -> tuple[np.ndarray, np.ndarray]:
    return (
        overlap.true_areas[np.searchsorted(overlap.true_ids, overlap.pairs[:, 0])],
        overlap.predicted_areas[np.searchsorted(overlap.predicted_ids, overlap.pairs[:, 1])],
    )


def iou(overlap: Overlap) -> np.ndarray:
    """Return the IoU of each pair as float32, the precision in which stardist compares."""
    true_area, predicted_area = _areas_of_pairs(overlap)
    return (overlap.shared / (true_area + predicted_area - overlap.shared)).astype(np.float32)


def matched_pairs(overlap: Overlap, threshold: float) -> np.ndarray:
    """Return which pairs a largest assignment with IoU >= threshold contains."""
    candidates = np.flatnonzero(iou(overlap) >= np.float32(threshold))
    if len(candidates) == 0 or threshold > 0.51:
        return candidates
    # Here so that those who need no scores at low thresholds do not load scipy.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    rows = np.searchsorted(overlap.true_ids, overlap.pairs[candidates, 0])
    columns = np.searchsorted(overlap.predicted_ids, overlap.pairs[candidates, 1])
    size = (len(overlap.true_ids), len(overlap.predicted_ids))
    graph = csr_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=size)
    column_of_row = maximum_bipartite_matching(graph, perm_type="column")
    return candidates[column_of_row[rows] == columns]
