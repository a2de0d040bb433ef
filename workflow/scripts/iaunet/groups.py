"""Groups of images compared: every image is one value, whatever its number of objects."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from iaunet import effects, plots, wording

MEASURES = {
    "n_objects": "objects per image",
    "density_per_mm2": "objects per mm²",
    "density_per_mm3": "objects per mm³",
    "foreground_fraction": "share of the image that is object",
    "median_area_um2": "median area of an image's objects, µm²",
    "median_volume_um3": "median volume of an image's objects, µm³",
    "median_area_px": "median area of an image's objects, px",
    "median_volume_px": "median volume of an image's objects, voxels",
    "ap50": "AP50",
    "ap_mean": "mean AP .5–.95",
    "focus": "focus, fine against coarse detail of objects",
}
JITTER = 0.6
"""Of the height of a group, over which its images are spread."""
SEED = 1


def compared(rows: Sequence[Mapping]) -> tuple[dict[str, object], dict[str, object]] | None:
    """Return what the template shows of the groups, and what summary.js draws.

    The first group of the table is what the others are compared with. None when no measure has
    two values.

    Parameters
    ----------
    rows : one per image, in the order of the table: image, group, and `MEASURES`, as far as known
    """
    rows = [{**row, **in_micrometers(row)} for row in rows]
    rows = [{**row, **{key: finite(row.get(key)) for key in MEASURES}} for row in rows]
    measures = [key for key in MEASURES if sum(row.get(key) is not None for row in rows) > 1]
    if not measures:
        return None
    names = list(dict.fromkeys(row["group"] for row in rows))
    shown = [name or "(no group)" for name in names] if names != [""] else ["all images"]
    spread = np.random.default_rng(SEED).uniform(-JITTER / 2, JITTER / 2, len(rows))
    data = {
        **plots.document({"groups": plots.strips(shown)}),
        "images": [row["image"] for row in rows],
        "group": [names.index(row["group"]) for row in rows],
        "spread": np.round(spread, 3).tolist(),
        "names": shown,
        "measures": {key: measured(rows, names, key) for key in measures},
    }
    shown_measures = [(key, MEASURES[key]) for key in measures]
    return {"measures": shown_measures, "reference": shown[0], "n": len(names)}, data


def finite(value: object) -> float | None:
    """Return a number, or None for none and for what a file should not have said."""
    try:
        return float(value) if value is not None and math.isfinite(value) else None
    except (TypeError, OverflowError):
        return None


def in_micrometers(row: Mapping) -> dict[str, float]:
    """Return the median size of the objects of an image in micrometers, where that is known."""
    spacing = [finite(step) for step in row.get("pixel_um") or [None]]
    sizes = {
        f"median_{what}_{unit}": finite(row.get(f"median_{what}_px"))
        for what, unit in (("area", "um2"), ("volume", "um3"))
    }
    if None in spacing:
        return {}
    return {key: px * math.prod(spacing) for key, px in sizes.items() if px is not None}


def measured(rows: Sequence[Mapping], names: Sequence[str], key: str) -> dict[str, object]:
    """Return the values of one measure, and a line of the table for each group."""
    values = [row.get(key) for row in rows]
    of_group = [
        np.array(
            [value for row, value in zip(rows, values, strict=True) if known(row, value, name)]
        )
        for name in names
    ]
    rng = np.random.default_rng(SEED)
    return {
        "values": [None if value is None else float(f"{value:.6g}") for value in values],
        "text": MEASURES[key],
        "medians": [float(np.median(one)) if len(one) else None for one in of_group],
        "lines": [line(one, of_group[0], k == 0, rng) for k, one in enumerate(of_group)],
    }


def known(row: Mapping, value: float | None, name: str) -> bool:
    """Tell whether an image is of a group and has a value."""
    return row["group"] == name and value is not None


def line(
    values: np.ndarray, reference: np.ndarray, first: bool, rng: np.random.Generator
) -> list[str]:
    """Return number of images, median, quartiles, and the effect against the first group."""
    if not len(values):
        return ["0", "–", "–", "–"]
    low, middle, high = np.percentile(values, (25, 50, 75))
    found = [f"{len(values):,}", wording.number(middle)]
    found.append(f"{wording.number(low)} to {wording.number(high)}")
    if first or not len(reference):
        return [*found, "" if first else "–"]
    delta, between = (
        effects.cliffs_delta(values, reference),
        effects.interval(values, reference, rng),
    )
    room = f" [{between[0]:+.2f}, {between[1]:+.2f}]" if between else ", too few images"
    return [*found, f"{delta:+.2f}{room}"]
