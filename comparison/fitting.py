"""What all peers share: the budget, the search of settings, the score that decides."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotated import Case
from iaunet import metrics, tuning


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


def best_settings(
    score_of: Callable[[dict], float], start: Mapping[str, float], grid: Mapping[str, Sequence]
) -> tuple[dict, float]:
    """Search settings one at a time, again and again until none improves the score."""
    return tuning.search(score_of, start, grid, rounds=sys.maxsize)


def scored(
    segment: Callable[..., np.ndarray], inputs: Sequence, cases: Sequence[Case]
) -> Callable[[dict], float]:
    """Return the score of settings: of ``segment(input, **settings)`` against the true labels."""

    def score_of(settings: dict) -> float:
        return tuning.deciding_score(
            [
                metrics.overlap(case.labels, segment(x, **settings))
                for x, case in zip(inputs, cases, strict=True)
            ]
        )

    return score_of
