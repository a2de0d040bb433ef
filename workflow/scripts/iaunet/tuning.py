"""Network outputs and true labels -> the clustering's thresholds, and scores with them."""

import logging
from collections.abc import Sequence

import numpy as np

from iaunet import clustering, metrics

log = logging.getLogger("iaunet")

SCORED = tuple(np.arange(0.5, 0.91, 0.1).round(2))
GRID = {
    "suppress": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "seed": (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "phi": (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    "fg": (0.3, 0.4, 0.5, 0.6, 0.7),
    "smooth": (0, 1, 2, 3),
    "seed_window": (1, 2, 3, 5, 8),
    "min_size": (4, 8, 12, 16, 24, 32, 64),
}
Case = tuple[dict[str, np.ndarray], np.ndarray]
"""Fixed-point outputs and true labels of an image, -1 where nothing is annotated."""


def start_settings(sizes: np.ndarray, ndim: int) -> clustering.Settings:
    """Return the thresholds to start from; the smallest objects (voxels) set the least size."""
    least = int(max(4, 0.5 * np.percentile(sizes, 0.5))) if len(sizes) else 16
    return clustering.Settings.from_dict({"min_size": least, "smooth": 1}, ndim)


def compared(
    case: Case, settings: clustering.Settings, id_stride: Sequence[int]
) -> metrics.Overlap:
    """Return what the labels of one image share with the true ones, where it is annotated."""
    outputs, true = case
    found = clustering.label_array(outputs, settings, id_stride)
    return metrics.overlap(*metrics.where_annotated(true, found))


def pooled_ap(
    cases: Sequence[Case],
    settings: clustering.Settings,
    id_stride: Sequence[int],
) -> tuple[list[float], float]:
    """Return AP at the scored thresholds, counts pooled; and the mean AP of single images.

    An image without any object, true or predicted, counts as 1 in the latter.
    """
    counts, single = [], []
    for case in cases:
        counts.append(metrics.match_counts(compared(case, settings, id_stride), SCORED))
        ap = metrics.pooled(counts[-1:])
        single.append(np.mean([1.0 if value is None else value for value in ap]))
    return [value or 0.0 for value in metrics.pooled(counts)], float(np.mean(single))


def fit_thresholds(
    cases: Sequence[Case],
    settings: clustering.Settings,
    id_stride: Sequence[int],
) -> tuple[clustering.Settings, float]:
    """Search the thresholds one at a time, up to three times, for the best mean AP.

    The score is the mean of two: pooled over all objects, and averaged over images, so that
    neither one crowded image nor a few objects in an empty one decide.
    """
    ndim = len(id_stride)

    def score_of(trial: clustering.Settings) -> float:
        pooled, single = pooled_ap(cases, trial, id_stride)
        return 0.5 * (float(np.mean(pooled)) + single)

    score = score_of(settings)
    for _ in range(3):
        before = score
        for name, values in GRID.items():
            for value in values:
                if name == "seed_window":  # sections are often farther apart than pixels
                    value = [max(1, value // 2)] * (ndim - 2) + [value] * 2
                trial = clustering.Settings.from_dict(settings.as_dict() | {name: value}, ndim)
                if trial != settings and (found := score_of(trial)) > score:
                    settings, score = trial, found
        log.info("thresholds %s: score %.4f", settings.as_dict(), score)
        if score == before:
            break
    return settings, score


def accuracy(
    cases: Sequence[Case],
    settings: clustering.Settings,
    id_stride: Sequence[int],
) -> dict[str, float | None]:
    """Return the pooled scores of the fitted model on its validation images."""
    overlaps = [compared(case, settings, id_stride) for case in cases]
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
