"""Logistic regression on a few columns, small enough for a model file."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RIDGE = 1.0
"""Weight of the squares of the standardised weights, against the sum over all rows."""


@dataclass(frozen=True)
class Weights:
    """Of standardised columns; the first weight is the constant."""

    mean: np.ndarray
    spread: np.ndarray
    weight: np.ndarray

    def log_odds(self, x: np.ndarray) -> np.ndarray:
        """Return the log odds of (n, c) columns."""
        total = np.full(len(x), self.weight[0])
        for k in range(x.shape[1]):  # in this order on every machine
            total = total + (x[:, k] - self.mean[k]) / self.spread[k] * self.weight[k + 1]
        return total

    def as_dict(self) -> dict[str, list[float]]:
        """Return the weights as JSON can store them."""
        return {name: getattr(self, name).tolist() for name in ("mean", "spread", "weight")}

    @classmethod
    def from_dict(cls, values: Mapping[str, object], n_columns: int) -> "Weights":
        """Return checked weights.

        Raises
        ------
        ValueError
            Wrong numbers of columns, or numbers that are not finite.
        """
        found = {name: np.array(values[name], float) for name in ("mean", "spread", "weight")}
        lengths = [found[name].shape for name in ("mean", "spread", "weight")]
        if lengths != [(n_columns,), (n_columns,), (n_columns + 1,)]:
            raise ValueError(f"weights of shapes {lengths}, needs {n_columns} columns")
        if not all(np.isfinite(part).all() for part in found.values()):
            raise ValueError("weights that are not finite")
        if not (found["spread"] > 0).all():
            raise ValueError("a spread that is not above 0")
        return cls(**found)


def fit(x: np.ndarray, y: np.ndarray) -> Weights:
    """Fit by Newton's method with a ridge, so that few or separable rows do not have large weights.

    Parameters
    ----------
    x : (n, c) columns; one that is constant gets weight 0
    y : (n,) bool
    """
    mean = x.mean(0) if len(x) else np.zeros(x.shape[1])
    spread = x.std(0) if len(x) else np.ones(x.shape[1])
    spread = np.where(spread > 1e-9, spread, 1.0)
    design = np.column_stack([np.ones(len(x)), (x - mean) / spread])
    weight = np.zeros(design.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ weight, -30, 30)))
        gradient = design.T @ (chance - y) + RIDGE * weight
        curvature = (design.T * (chance * (1 - chance))) @ design
        curvature += RIDGE * np.eye(len(weight))
        move = np.linalg.solve(curvature, gradient)
        weight = weight - move * min(1.0, 5 / max(np.abs(move).max(), 1e-9))
        if np.abs(move).max() < 1e-8:
            break
    return Weights(mean, spread, weight)
