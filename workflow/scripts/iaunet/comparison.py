"""Scores of several trainings on the same images: bootstrap intervals and the criterion.

Every score is a ratio of sums over images: a mean is the sum of the values over the number of
images that have one, an F1 the sum of 2 TP over that of 2 TP + FP + FN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

N_RESAMPLES = 10_000
LEVEL = 0.95
HARDER = ("touching", "look-alike")
LARGEST_DROP = 0.003
LEAST_LINK_GAIN = 0.05
"""Of the criterion that was registered before the ablation: 0.3 points and 5 points."""


@dataclass(frozen=True)
class Sample:
    """A score of every image by every seed: `amount` / `out_of`, both (seeds, images).

    An image in which the score is not defined has 0 in both.
    """

    amount: np.ndarray
    out_of: np.ndarray


@dataclass(frozen=True)
class Weights:
    """How often each resample holds each seed and each image: (n, seeds) and (n, images)."""

    of_seeds: np.ndarray
    of_images: np.ndarray


def resamples(n_seeds: int, n_images: int, rng: np.random.Generator) -> Weights:
    """Draw `N_RESAMPLES` times as many images and as many seeds as there are, with replacement.

    Images and seeds are crossed: a resample takes the same images of every seed it took. So
    the interval says both how the score would differ on other images of this kind, and after
    other trainings; with three seeds it is a little too narrow for the latter.
    """
    counts = [
        rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(float)
        for n in (n_seeds, n_images)
    ]
    return Weights(*counts)


def ratio(sample: Sample) -> float:
    """Return the score over all seeds and images; NaN when it is nowhere defined."""
    out_of = sample.out_of.sum()
    return float(sample.amount.sum() / out_of) if out_of else float("nan")


def ratios(sample: Sample, weights: Weights) -> np.ndarray:
    """Return the score of every resample, (n,)."""
    total = [
        ((weights.of_images @ part.T) * weights.of_seeds).sum(1)
        for part in (sample.amount, sample.out_of)
    ]
    found = np.full(len(total[0]), np.nan)
    return np.divide(*total, out=found, where=total[1] > 0)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of `LEVEL` of the draws that are defined."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Score:
    """A score over all images: its value, that of every resample and of every seed alone.

    `defined` tells in which images it is.
    """

    value: float
    draws: np.ndarray
    of_seeds: np.ndarray
    defined: np.ndarray


def scored(sample: Sample, weights: Weights) -> Score:
    """Return the score of a sample with its resamples."""
    of_seeds = [ratio(Sample(*pair)) for pair in zip(sample.amount, sample.out_of, strict=True)]
    defined = sample.out_of.any(axis=0)
    return Score(ratio(sample), ratios(sample, weights), np.array(of_seeds), defined)


def estimate(score: Score, minus: Score | None = None) -> dict[str, float | int]:
    """Return a score, or the paired difference of two, with its interval.

    Pairs are images (and seeds): both scores are of the same ones and of the same resamples.

    Returns
    -------
    value, low, high; lowest_seed and highest_seed, the value by the seeds one at a time;
    n_images in which it is defined.
    """
    value, draws, of_seeds, defined = (
        score.value, score.draws, score.of_seeds, score.defined
    )  # fmt: skip
    if minus is not None:
        value, draws = value - minus.value, draws - minus.draws
        of_seeds, defined = of_seeds - minus.of_seeds, defined & minus.defined
    low, high = interval(draws)
    return {
        "value": value,
        "low": low,
        "high": high,
        "lowest_seed": float(of_seeds.min()),
        "highest_seed": float(of_seeds.max()),
        "n_images": int(defined.sum()),
    }


@dataclass(frozen=True)
class Verdict:
    """What the criterion says of a use of identity.

    Attributes
    ----------
    improves : parts of the objects on which mAP improves with an interval that excludes 0.
    harmless : whether mAP of all objects drops by no more than `LARGEST_DROP`.
    links : whether identity improves links by `LEAST_LINK_GAIN` or more.
    keep : the decision.
    """

    improves: tuple[str, ...]
    harmless: bool
    links: bool

    @property
    def keep(self) -> bool:
        """Whether identity keeps its default weight: condition (i) or condition (ii)."""
        return (bool(self.improves) and self.harmless) or self.links


def verdict(rows: Sequence[Mapping], row: str, minus: str) -> Verdict:
    """Apply the criterion of METHODS 8.2 to the table of an ablation.

    Identity keeps its default weight if (i) mAP on the touching or look-alike subset improves
    with an interval that excludes 0 and mAP of all objects does not drop by more than 0.3
    points, or (ii) link-F1 at an overlap of 0 to 4 px improves by at least 5 points over
    position and size only. What is not in the table is not fulfilled.

    Parameters
    ----------
    rows : of the table: row, minus, images, part, measure, value, low, high.
    row, minus : the two rows that are compared.
    """
    found = {
        (r["part"], r["measure"]): r
        for r in rows
        if r["images"] == "all" and (r["row"], r["minus"]) == (row, minus)
    }
    gain = {
        r["measure"]: r["value"]
        for r in rows
        if (r["images"], r["row"], r["minus"], r["part"]) == ("all", row, "", "links")
    }
    whole = found.get(("all", "map"))
    return Verdict(
        improves=tuple(
            part for part in HARDER if (part, "map") in found and found[part, "map"]["low"] > 0
        ),
        harmless=whole is not None and whole["value"] >= -LARGEST_DROP,
        links=gain.get("gain 0-4", float("nan")) >= LEAST_LINK_GAIN,
    )
