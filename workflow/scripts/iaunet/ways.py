"""Ways from network outputs to labels that an ablation compares, and their settings.

All are fitted alike: settings one at a time, from a grid, for the best mean AP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iaunet import baselines, clustering, metrics, tuning
from iaunet.settings import DEFAULTS

MEANSHIFT = {
    "bandwidth": (0.5, 0.75, 1.0, 1.5, 2.0),
    "window_px": (8, 16, 24),
    "fg": (0.3, 0.5, 0.7),
    "min_size": tuning.GRID["min_size"],
}
"""What is searched for mean-shift, which takes a hundred times as long as the other ways."""
IDENTITY = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Weights of identity in the assignment; 0 is the row that it is compared with."""

Settings = dict[str, object]
Label = Callable[[Mapping[str, np.ndarray], Mapping[str, object]], np.ndarray]


@dataclass(frozen=True)
class Way:
    """A way from network outputs to labels, and the settings that are searched for it."""

    label: Label
    grid: Mapping[str, Sequence[object]]


def components_way(ndim: int, id_stride: Sequence[int], training: Mapping) -> Way:
    """Return connected components of the mask."""
    return Way(
        lambda outputs, s: baselines.components(outputs, fg=s["fg"], min_size=s["min_size"]),
        only("fg", "min_size"),
    )


def watershed_way(ndim: int, id_stride: Sequence[int], training: Mapping) -> Way:
    """Return the watershed on the predicted distance map."""
    grid = only("seed", "fg", "smooth", "seed_window", "min_size")
    return Way(
        lambda outputs, s: baselines.watershed(outputs, **{name: s[name] for name in grid}), grid
    )


def local_way(ndim: int, id_stride: Sequence[int], training: Mapping) -> Way:
    """Return the clustering of the workflow."""
    return Way(lambda outputs, s: clustered(outputs, s, ndim, id_stride), tuning.GRID)


def meanshift_way(ndim: int, id_stride: Sequence[int], training: Mapping) -> Way:
    """Return the local mean-shift of the vectors that the discriminative term has shaped."""
    fixed = {name: training[name] for name in ("vectors", "unit_px")} | {"mode": "meanshift"}
    return Way(lambda outputs, s: clustered(outputs, {**s, **fixed}, ndim, id_stride), MEANSHIFT)


def clustered(
    outputs: Mapping[str, np.ndarray], values: Mapping, ndim: int, id_stride: Sequence[int]
) -> np.ndarray:
    """Return the labels of the workflow's clustering with some settings."""
    settings = clustering.Settings.from_dict(values, ndim)
    return clustering.label_array(outputs, settings, id_stride)


def only(*names: str) -> dict[str, Sequence[object]]:
    """Return the part of the grid of these settings."""
    return {name: tuning.GRID[name] for name in names}


WAYS = {
    "components": components_way,
    "watershed": watershed_way,
    "meanshift": meanshift_way,
    "local": local_way,
    "identity": local_way,
}


def fitted(way: Way, cases: Sequence[tuning.Case], identity: bool) -> tuple[Settings, float]:
    """Return the best settings on the validation images, and their score.

    The score is the mean of two: AP pooled over all objects, and averaged over images. With
    `identity` its weight is chosen last; the other settings stay those without it.
    """
    grid = tuning.grid_of(cases[0][1].ndim, way.grid)
    start = {name: DEFAULTS[name] for name in grid}
    sizes = np.concatenate([np.bincount(true[true > 0])[1:] for _, true in cases])
    first = tuning.start_settings(sizes[sizes > 0], cases[0][1].ndim).as_dict()
    start |= {name: first[name] for name in ("min_size", "smooth") if name in grid}

    def score_of(settings: Mapping[str, object]) -> float:
        return tuning.deciding_score(
            [
                metrics.overlap(*metrics.where_annotated(true, way.label(outputs, settings)))
                for outputs, true in cases
            ]
        )

    settings, score = tuning.search(score_of, start, grid)
    if identity:
        trials = [settings | {"identity": weight} for weight in IDENTITY]
        settings = max(trials, key=score_of)
        score = score_of(settings)
    return settings, score
