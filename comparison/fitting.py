"""What all peers share: the budget, the search of settings, the score that decides."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotated import Case
from iaunet import metrics

SCORED = (0.5, 0.6, 0.7, 0.8, 0.9)


class Budget:
    """Minutes of CPU time of this process, all threads together, from now on.

    Another program on the same machine does not shorten it, as it would shorten wall time.
    """

    def __init__(self, minutes: float) -> None:
        self.allowed = minutes
        self.began = time.process_time()

    @property
    def minutes(self) -> float:
        """Minutes that are spent."""
        return (time.process_time() - self.began) / 60

    @property
    def share(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(1.0, self.minutes / self.allowed)


@dataclass(frozen=True)
class Options:
    """How a peer is fitted: CPU minutes, threads, seed, and a folder for its own files."""

    minutes: float
    threads: int
    seed: int
    work: Path


@dataclass(frozen=True)
class Fitted:
    """A fitted peer: image -> labels, and what is to be told of the fit."""

    segment: Callable[[np.ndarray], np.ndarray]
    facts: Mapping[str, object]


def mean_ap(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mean of two scores of (true, predicted) labels, as `train.fit_thresholds` does.

    Mean AP at IoU 0.5 to 0.9, once pooled over all objects and once averaged over images, in
    which an image without any object, true or predicted, counts as 1.
    """
    counts = [metrics.match_counts(metrics.overlap(*pair), SCORED) for pair in pairs]
    together = np.mean([value or 0.0 for value in metrics.pooled(counts)])
    single = [np.mean([1.0 if v is None else v for v in metrics.pooled([c])]) for c in counts]
    return float(0.5 * together + 0.5 * np.mean(single))


def best_settings(
    score_of: Callable[[dict], float], start: Mapping[str, float], grid: Mapping[str, Sequence]
) -> tuple[dict, float]:
    """Search settings one at a time, again and again until none improves the score."""
    settings = dict(start)
    score, before = score_of(settings), -1.0
    while score > before:
        before = score
        for name, values in grid.items():
            for value in values:
                trial = settings | {name: value}
                if trial != settings and (found := score_of(trial)) > score:
                    settings, score = trial, found
    return settings, score


def scored(
    segment: Callable[..., np.ndarray], inputs: Sequence, cases: Sequence[Case]
) -> Callable[[dict], float]:
    """Return the score of settings: of ``segment(input, **settings)`` against the true labels."""

    def score_of(settings: dict) -> float:
        return mean_ap(
            [(case.labels, segment(x, **settings)) for x, case in zip(inputs, cases, strict=True)]
        )

    return score_of
