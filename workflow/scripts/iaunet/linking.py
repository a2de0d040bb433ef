"""Fragments of objects on two sides of an artificial cut: which belong together.

An image is cut across the middle of one axis into two tiles that overlap, abut, or have a gap
between them; each tile is seen alone. What its labels show is a fragment, with a place, a size
and an identity vector, and fragments of the two tiles are linked by one or several of these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from iaunet import logistic

OVERLAPS_PX = (0, 2, 4, 8, 16, 32, -2, -4, -8)
"""How far two tiles overlap; negative is a gap."""
LEAST_VOXELS = 10
"""Smaller fragments are left out."""
EVIDENCE = ("iou", "distance", "section", "cosine")
MEANS = {
    "place": ("distance", "section"),
    "identity": ("cosine",),
    "place and identity": ("distance", "section", "cosine"),
    "everything": EVIDENCE,
}
"""By which evidence fragments are linked; besides these, "iou": at least 0.5 (EmbedSeg)."""


@dataclass(frozen=True)
class Fragments:
    """The fragments of one tile at its border with the other one, by label.

    Attributes
    ----------
    label : (n,) int
        In the tile's labels.
    centre : (n, d) float
        px of the image.
    size, section : (n,) int
        Voxels of the fragment, and of its cut face: those in the tile's outermost line.
    vector : (n, c) float
        Mean identity vector, of length 1; zeros where there is none.
    """

    label: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    section: np.ndarray
    vector: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs of fragments of one image and one cut.

    Attributes
    ----------
    first, second : (p,) int
        Which fragments, as positions in the tables of the two tiles.
    evidence : (p, 4) float
        As in `EVIDENCE`: IoU within the overlap, squared distance of the centres over the sum of
        the squared radii, |log ratio of the cut faces|, cosine of the identity vectors.
    same : (p,) bool
        Whether they are of one object.
    unlike : (p,) float
        How much the morphologies of their objects differ.
    n_true : int
        How many pairs there are to find, among the candidates or not.
    """

    first: np.ndarray
    second: np.ndarray
    evidence: np.ndarray
    same: np.ndarray
    unlike: np.ndarray
    n_true: int


def tiles(
    shape: Sequence[int], axis: int, overlap_px: int
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the boxes of two tiles that share `overlap_px` lines, or lack as many.

    Examples
    --------
    >>> tiles((9, 10), 1, 2)
    ((slice(0, 9, None), slice(0, 6, None)), (slice(0, 9, None), slice(4, 10, None)))
    """
    stop = shape[axis] // 2 + overlap_px // 2
    start = stop - overlap_px
    if not 0 < stop <= shape[axis] > start >= 0:
        raise ValueError(f"no two tiles with {overlap_px=} along axis {axis} of {tuple(shape)}")
    whole = [slice(0, length) for length in shape]
    one, other = list(whole), list(whole)
    one[axis], other[axis] = slice(0, stop), slice(start, shape[axis])
    return tuple(one), tuple(other)


def fragments(
    labels: np.ndarray,
    identity: np.ndarray,
    id_stride: Sequence[int],
    *,
    box: tuple[slice, ...],
    axis: int,
    band: tuple[int, int],
) -> Fragments:
    """Return the fragments of a tile that reach into the band that it shares with the other.

    Parameters
    ----------
    labels : int array
        Of the tile; 0 is background.
    identity : (c, ...) array
        Identity map of the tile, one cell per `id_stride` px.
    box : where the tile lies in the image; one tile starts at 0 of `axis`, the other does not.
    band : first and last line + 1 of the shared band along `axis`, px of the image.
    """
    where = labels.nonzero()
    label, owner, size = np.unique(labels[where], return_inverse=True, return_counts=True)
    n = len(label)
    along = where[axis] + box[axis].start
    outermost = 0 if box[axis].start else labels.shape[axis] - 1
    section = np.bincount(owner[where[axis] == outermost], minlength=n)
    reaches = np.bincount(owner[(along >= band[0]) & (along < band[1])], minlength=n) > 0
    centre = np.stack(
        [
            np.bincount(owner, at, n) / np.maximum(size, 1) + side.start
            for at, side in zip(where, box, strict=True)
        ],
        axis=1,
    )
    cells = [at // stride for at, stride in zip(where, id_stride, strict=True)]
    seen = identity[(slice(None), *cells)].astype(float)
    total = np.stack([np.bincount(owner, channel, n) for channel in seen], axis=1).astype(float)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    vector = np.divide(total, length, out=np.zeros_like(total), where=length > 0)
    kept = reaches & (size >= LEAST_VOXELS)
    return Fragments(label[kept], centre[kept], size[kept], section[kept], vector[kept])


def candidate_pairs(
    one: Fragments,
    other: Fragments,
    shared: tuple[np.ndarray, np.ndarray],
    morphology: np.ndarray,
    reach_px: float,
) -> Pairs:
    """Return all pairs of fragments of true objects whose centres are near each other.

    Parameters
    ----------
    shared : two int arrays of equal shapes
        Labels of both tiles in their overlap; empty when there is none.
    morphology : (n + 1, m)
        Standardised, of the true objects; equal labels of the two tiles are one object.
    reach_px : float
        Fragments whose centres are farther apart are no candidates.
    """
    d = one.centre.shape[1]
    apart = np.linalg.norm(one.centre[:, None] - other.centre[None], axis=2)
    first, second = np.nonzero(apart < reach_px)
    radius = [(part.size / np.pi) ** (1 / d) for part in (one, other)]
    evidence = np.stack(
        [
            _iou(one.label[first], other.label[second], *shared),
            apart[first, second] ** 2 / (radius[0][first] ** 2 + radius[1][second] ** 2),
            np.abs(np.log((one.section[first] + 1) / (other.section[second] + 1))),
            (one.vector[first] * other.vector[second]).sum(1),
        ],
        axis=1,
    )
    labels = one.label[first], other.label[second]
    return Pairs(
        first=first,
        second=second,
        evidence=evidence,
        same=labels[0] == labels[1],
        unlike=np.linalg.norm(morphology[labels[0]] - morphology[labels[1]], axis=1),
        n_true=len(np.intersect1d(one.label, other.label)),
    )


def _iou(
    label: np.ndarray, other_label: np.ndarray, band: np.ndarray, other_band: np.ndarray
) -> np.ndarray:
    """Return the IoU of pairs of fragments within the overlap of their tiles."""
    found = np.zeros(len(label))
    for k, (a, b) in enumerate(zip(label, other_label, strict=True)):
        union = np.count_nonzero((band == a) | (other_band == b))
        found[k] = np.count_nonzero((band == a) & (other_band == b)) / max(union, 1)
    return found


@dataclass(frozen=True)
class Scorer:
    """Logistic regression: how likely two fragments are one object."""

    columns: tuple[int, ...]
    weights: logistic.Weights

    def score(self, evidence: np.ndarray) -> np.ndarray:
        """Return the log odds of (p, 4) evidence."""
        return self.weights.log_odds(evidence[:, self.columns])


def calibrated(pairs: Sequence[Pairs], names: Sequence[str]) -> Scorer:
    """Fit the weights of some kinds of evidence to pairs of known truth."""
    columns = tuple(EVIDENCE.index(name) for name in names)
    x = np.concatenate([one.evidence[:, columns] for one in pairs] or [np.zeros((0, len(columns)))])
    y = np.concatenate([one.same for one in pairs] or [np.zeros(0, bool)])
    return Scorer(columns, logistic.fit(x, y))


def links(pairs: Pairs, score: np.ndarray) -> np.ndarray:
    """Return which candidates are linked: the one-to-one links of largest total log odds.

    Candidates of log odds 0 or less (probability one half) are never linked, and, other than
    with a cost of -log probability, never push a better pair aside.

    Parameters
    ----------
    score : (p,) log odds
    """
    if not len(score):
        return np.zeros(0, dtype=bool)
    gain = np.zeros((pairs.first.max() + 1, pairs.second.max() + 1))
    gain[pairs.first, pairs.second] = np.maximum(score, 0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    chosen = np.zeros(gain.shape, dtype=bool)
    chosen[rows, columns] = True
    return chosen[pairs.first, pairs.second] & (score > 0)


def link_counts(pairs: Pairs, scorers: Mapping[str, Scorer]) -> dict[str, tuple[int, int]]:
    """Return, for every way of linking, 2 TP and 2 TP + FP + FN of the pairs of one image.

    Their ratio, also of their sums over images, is F1.
    """
    scores = {name: scorer.score(pairs.evidence) for name, scorer in scorers.items()}
    scores["iou"] = np.where(pairs.evidence[:, EVIDENCE.index("iou")] >= 0.5, 1.0, -1.0)
    found = {}
    for name, score in scores.items():
        linked = links(pairs, score)
        hits = int((linked & pairs.same).sum())
        found[name] = 2 * hits, int(linked.sum()) + pairs.n_true
    return found


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative.

    Ties count one half (Mann and Whitney 1947). NaN without a positive or a negative.

    Examples
    --------
    >>> auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    ranks = rankdata(score)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
