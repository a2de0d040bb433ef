"""Network outputs and true labels -> the clustering's thresholds, and scores with them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from iaunet import clustering, joining, metrics

log = logging.getLogger("iaunet")

SCORED = tuple(np.arange(0.5, 0.91, 0.1).round(2))
GRID = {
    "suppress": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "seed": (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "phi": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    "fg": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "smooth": (0, 1, 2, 3),
    "seed_window": (1, 2, 3, 5, 8),
    "min_size": (4, 8, 12, 16, 24, 32, 64),
}
JOIN = (0.0, 0.5, 0.7, 0.3, 0.9)
OVERSPLIT = (0.1, 0.3, 0.6)
"""Values of `suppress` at which objects fall into more fragments."""
Case = tuple[dict[str, np.ndarray], np.ndarray]
"""Fixed-point outputs and true labels of an image, -1 where nothing is annotated."""


def start_settings(sizes: np.ndarray, ndim: int) -> clustering.Settings:
    """Return the thresholds to start from; the smallest objects (voxels) set the least size."""
    least = int(max(4, 0.5 * np.percentile(sizes, 0.5))) if len(sizes) else 16
    return clustering.Settings.from_dict({"min_size": least, "smooth": 1}, ndim)


def compared(
    case: Case,
    settings: clustering.Settings,
    id_stride: Sequence[int],
    joiner: joining.Joiner | None = None,
) -> metrics.Overlap:
    """Return what the labels of one image share with the true ones, where it is annotated."""
    outputs, true = case
    found = clustering.label_array(outputs, settings, id_stride, joiner)
    return metrics.overlap(*metrics.where_annotated(true, found))


def pooled_ap(
    cases: Sequence[Case],
    settings: clustering.Settings,
    id_stride: Sequence[int],
) -> tuple[list[float], float]:
    """Return AP at the scored thresholds, counts pooled; and the mean AP of single images.

    An image without any object, true or predicted, counts as 1 in the latter.
    """
    return both_ap([compared(case, settings, id_stride) for case in cases])


def both_ap(overlaps: Sequence[metrics.Overlap]) -> tuple[list[float], float]:
    """Return what `pooled_ap` does, of images whose labels are compared already."""
    counts = [metrics.match_counts(one, SCORED) for one in overlaps]
    single = [
        np.mean([1.0 if value is None else value for value in metrics.pooled([one])])
        for one in counts
    ]
    return [value or 0.0 for value in metrics.pooled(counts)], float(np.mean(single))


def deciding_score(overlaps: Sequence[metrics.Overlap]) -> float:
    """Return the mean of two: mean AP pooled over all objects, and averaged over images.

    So neither one crowded image nor a few objects in an empty one decide.
    """
    pooled, single = both_ap(overlaps)
    return 0.5 * (float(np.mean(pooled)) + single)


def search(
    score_of: Callable[[dict[str, object]], float],
    start: Mapping[str, object],
    grid: Mapping[str, Sequence[object]],
    rounds: int = 3,
) -> tuple[dict[str, object], float]:
    """Search settings one at a time for the largest score, until a round finds nothing better.

    Of equal scores the first found stays.
    """
    best, score = dict(start), score_of(dict(start))
    for _ in range(rounds):
        before = score
        for name, values in grid.items():
            for value in values:
                trial = best | {name: value}
                if trial != best and (found := score_of(trial)) > score:
                    best, score = trial, found
        log.info("thresholds %s: score %.4f", best, score)
        if score == before:
            break
    return best, score


def grid_of(ndim: int, grid: Mapping[str, Sequence[object]]) -> dict[str, Sequence[object]]:
    """Return a grid of settings with a seed window per axis: sections are often farther apart."""
    windows = grid.get("seed_window", ())
    per_axis = [[max(1, px // 2)] * (ndim - 2) + [px] * 2 for px in windows]
    return {**grid, "seed_window": per_axis} if per_axis else dict(grid)


def fit_thresholds(
    cases: Sequence[Case],
    settings: clustering.Settings,
    id_stride: Sequence[int],
    known: Sequence[Case] = (),
) -> tuple[clustering.Settings, float]:
    """Search the thresholds one at a time, up to three times, for the best `deciding_score`.

    `known` are images to fit to which fragments are one object; with them the objects are
    scored, as they are joined, and not the fragments.
    """
    ndim = len(id_stride)

    def score_of(values: dict[str, object]) -> float:
        trial, joiner = clustering.Settings.from_dict(values, ndim), None
        if known:
            trial = replace(trial, join=joining.EVEN)
            joiner = joining.fit([_fragments(case, trial, id_stride) for case in known], ndim)
        if joiner is None:
            trial = replace(trial, join=0.0)
        return deciding_score([compared(case, trial, id_stride, joiner) for case in cases])

    found, score = search(score_of, settings.as_dict(), grid_of(ndim, GRID))
    return clustering.Settings.from_dict(found, ndim), score


def fit_joining(
    train: Sequence[Case],
    validation: Sequence[Case],
    settings: clustering.Settings,
    id_stride: Sequence[int],
) -> tuple[clustering.Settings, joining.Joiner | None]:
    """Fit which fragments are one object, and from which probability they are joined.

    The weights are fitted to the contacts of fragments of the images that were trained with,
    also of fragments that were made too small on purpose, because there are few otherwise; the
    probability to the images to validate with; it is 0, never, where joining does not help.
    """
    trials = [replace(settings, join=1.0, suppress=s) for s in (settings.suppress, *OVERSPLIT)]
    parts = [_fragments(case, trial, id_stride) for case in train for trial in trials]
    joiner = joining.fit(parts, len(id_stride))
    best, score = settings, -1.0
    for least in JOIN if joiner else ():
        trial = replace(settings, join=least)
        found = deciding_score([compared(case, trial, id_stride, joiner) for case in validation])
        log.info("join %.2f: score %.4f", least, found)
        if found > score:
            best, score = trial, found
    return best, joiner


def _fragments(
    case: Case, settings: clustering.Settings, id_stride: Sequence[int]
) -> tuple[clustering.Columns, clustering.Columns, np.ndarray]:
    """Return fragments, contacts and the true object in which most of each fragment lies, or 0."""
    outputs, true = case
    found = clustering.label_whole(outputs, settings, id_stride)
    gid = found.table["gid"]
    shared = metrics.overlap(np.maximum(true, 0), found.labels)
    area = shared.predicted_areas[np.searchsorted(shared.predicted_ids, shared.pairs[:, 1])]
    mostly = 2 * shared.shared > area
    of_fragment = np.zeros(len(gid), dtype=np.int64)
    place = np.searchsorted(gid, shared.pairs[mostly, 1] - np.uint64(1))
    of_fragment[place] = shared.pairs[mostly, 0]
    return found.table, found.contacts, of_fragment


def accuracy(
    cases: Sequence[Case],
    settings: clustering.Settings,
    id_stride: Sequence[int],
    joiner: joining.Joiner | None = None,
) -> dict[str, float | None]:
    """Return the pooled scores of the fitted model on its validation images."""
    overlaps = [compared(case, settings, id_stride, joiner) for case in cases]
    counts = [metrics.match_counts(one) for one in overlaps]
    ap = metrics.pooled(counts)
    single = [metrics.pooled([count])[0] for count in counts]
    tp, fp, fn = (int(np.sum([c[k][0] for c in counts])) for k in range(3))
    return {
        "ap50": ap[0],
        "ap50_per_image": float(np.mean([value for value in single if value is not None])),
        "ap75": ap[5],
        "ap_mean": float(np.mean([a or 0.0 for a in ap])),
        "f1_50": 2 * tp / max(1, 2 * tp + fp + fn),
        "foreground_iou": metrics.foreground_iou(overlaps),
        "n_images": len(cases),
        "n_true": tp + fn,
    }
