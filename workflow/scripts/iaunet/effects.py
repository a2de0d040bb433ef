"""How much two groups of values differ, without a shape of their distribution being assumed."""

import numpy as np

RESAMPLES = 2000
FEWEST = 3
"""Values of a group that an interval needs."""


def cliffs_delta(values: np.ndarray, others: np.ndarray) -> float:
    """Return the chance that a value is above one of the others, less that it is below.

    Cliff 1993, "Dominance statistics"; from -1 to 1, 0 when neither group is above the other.

    Examples
    --------
    >>> cliffs_delta(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.75
    """
    return float(_deltas(values, others, np.ones((1, len(values))), np.ones((1, len(others))))[0])


def interval(
    values: np.ndarray, others: np.ndarray, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Return the 95 % interval of Cliff's delta, by resampling both groups; None for few values.

    Percentiles of `RESAMPLES` bootstrap samples. Groups that do not overlap have an interval of
    one point: no resample overlaps either.
    """
    if min(len(values), len(others)) < FEWEST:
        return None
    weights = [
        rng.multinomial(len(one), np.full(len(one), 1 / len(one)), RESAMPLES)
        for one in (values, others)
    ]
    low, high = np.percentile(_deltas(values, others, *weights), (2.5, 97.5))
    return float(low), float(high)


def _deltas(
    values: np.ndarray, others: np.ndarray, weights: np.ndarray, other_weights: np.ndarray
) -> np.ndarray:
    """Return the delta of every row of weights: how often each value was drawn."""
    order = np.argsort(others, kind="stable")
    below = np.searchsorted(others[order], values, "left")
    not_above = np.searchsorted(others[order], values, "right")
    summed = np.cumsum(other_weights[:, order], axis=1)
    summed = np.concatenate([np.zeros((len(summed), 1)), summed], axis=1)
    dominance = summed[:, below] + summed[:, not_above] - summed[:, -1:]
    return (weights * dominance).sum(axis=1) / weights.sum(axis=1) / summed[:, -1]
