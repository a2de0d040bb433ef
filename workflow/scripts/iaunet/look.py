"""The part of a page in which a reader looks around: sections, colours, table, histograms."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from iaunet import planes, plots, wording
from iaunet.gallery import Sample

DIGITS = 5
HIDDEN = ("image", "label")
"""Columns of the table of objects that say nothing of one object, beside its box."""
SHARES = (1, 2, 4, 16)
"""By which the pixels of all sections are divided until the page is light enough."""
MOST_BYTES = 3_500_000
"""Of all figures, which leaves room for BokehJS and the close-ups on a page of 5 MB."""
DRAWN = ("name", "column", "edges")
"""What report.js needs of a histogram."""
TALLEST_PX, LONGEST_PX = 820, 1400
"""Of all planes together, on a screen."""


def look(sample: Sample) -> tuple[dict[str, object], str]:
    """Return what the template shows, and what report.js puts together, compressed.

    When that is too much for a page, of fewer pixels: outlines take less room there, too.
    """
    objects = sample.objects.iloc[planes.chosen(len(sample.objects))]
    columns = of_objects(objects)
    for share in SHARES:
        shown = planes.planes(sample, planes.PIXELS // share)
        histograms = brushed(sample, columns) if len(objects) else []
        text = plots.packed(content(sample, objects, shown, columns, histograms))
        if len(text) <= MOST_BYTES:
            break
    across = [plane for plane in shown if plane.axis != "y"]
    return {
        "planes": [framed(plane) for plane in shown],
        "widths": " ".join(f"minmax(0,{plane.width:.6g}fr)" for plane in across),
        "longest_px": longest_px(shown),
        "colours": [(one["key"], one["text"]) for one in columns if one["numeric"]],
        "histograms": [(one["name"], one["title"]) for one in histograms],
        "note": planes.note(sample, shown),
        "n_chosen": len(objects),
        "counted": f"{len(objects):,} of {len(sample.objects):,} objects.",
    }, text


def content(
    sample: Sample,
    objects: pd.DataFrame,
    shown: Sequence[planes.Plane],
    columns: Sequence[dict],
    histograms: Sequence[dict],
) -> dict[str, object]:
    """Return figures, sections and numbers for report.js."""
    unit = None if sample.unit_um is None else "µm"
    places = {f"plane-{name}": one for name, one in plots.plane_figures(shown, unit).items()}
    places |= {f"histogram-{one['name']}": one["figure"] for one in histograms}
    if len(objects):
        places["bar"] = plots.colour_bar()
    rows = {int(row): k for k, row in enumerate(objects.index)}
    return {
        **plots.document(places),
        "planes": [described(plane, sample, rows) for plane in shown],
        "columns": columns,
        "labels": [int(label) for label in objects["label"]],
        "all": len(objects) == len(sample.objects),
        "histograms": [{key: one[key] for key in DRAWN} for one in histograms],
        "identity": plots.IDENTITY,
        "palette": plots.VALUES,
        "diameter": sample.diameter_px[-1] * sample.spacing[-1],
        "spacing": dict(zip(sample.axes, sample.spacing, strict=True)),
    }


def framed(plane: planes.Plane) -> dict[str, object]:
    """Return a plane for the template."""
    along = f", sections along {plane.axis}" if plane.axis else ""
    return {
        "name": plane.name,
        "label": f"The image in {plane.name}{along}, with outlines of the objects",
        "aspect": f"{plots.aspect(plane):.6g}",
        "last": len(plane.sections) - 1,
        "first": plane.first,
    }


def longest_px(shown: Sequence[planes.Plane]) -> int:
    """Return how wide all planes may be on a screen, so that none is higher than it."""
    across = shown[0].width + (shown[2].width if len(shown) > 1 else 0)
    down = shown[0].height + (shown[1].height if len(shown) > 1 else 0)
    return round(min(TALLEST_PX * max(across / down, plots.ASPECTS[0]), LONGEST_PX))


def described(plane: planes.Plane, sample: Sample, rows: dict[int, int]) -> dict[str, object]:
    """Return a plane for report.js, its objects by their place among those that are chosen."""
    faces = {"": sample.axes[::-1], "z": "xy", "y": "xz", "x": "zy"}
    return {
        "name": plane.name,
        "axis": plane.axis,
        "axes": list(faces[plane.axis]),
        "scale": plane.scale,
        "first": plane.first,
        "sections": [
            {
                "at": one.at,
                "picture": one.picture,
                "overlay": one.overlay,
                "rows": [rows[row] for row in one.rows],
                "lines": one.lines,
            }
            for one in plane.sections
        ],
    }


def of_objects(objects: pd.DataFrame) -> list[dict[str, object]]:
    """Return the columns of the table of objects that tell something, with values for reading.

    A value is a number of `DIGITS` digits, a text, or None; a column without any value is left
    out, such as micrometers when the size of a pixel is unknown.
    """
    found = []
    for key in objects.columns:
        if key in HIDDEN or key.startswith("bbox_"):
            continue
        column = objects[key]
        numeric = column.dtype.kind in "iuf"
        values = [_value(value) for value in column.tolist()]
        if any(value is not None for value in values):
            text = wording.feature(key)
            found.append({"key": key, "text": text, "numeric": numeric, "values": values})
    return found


def _value(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def brushed(sample: Sample, columns: Sequence[dict]) -> list[dict[str, object]]:
    """Return the histograms: of size, intensity and confidence, and of what colours the objects."""
    by_key = {one["key"]: one for one in columns}
    what = "area_um2" if sample.ndim == 2 else "volume_um3"
    size = what if what in by_key else sample.size_column
    intensity = [key for key in by_key if key.startswith("mean_intensity")][:1]
    found = []
    for key in (size, *intensity, "confidence"):
        if key not in by_key:
            continue
        one = by_key[key]
        values = np.array([np.nan if value is None else value for value in one["values"]], float)
        edges, log = plots.bins(values, (0.0, 1.0) if key == "confidence" else None)
        known = values[np.isfinite(values)]
        title = f"median {wording.number(float(np.median(known)))}"
        drawn = plots.histogram(key, title, one["text"], edges, log)
        title = f"Histogram of {one['text']}, {title}"
        found.append(_histogram(key, key, edges.tolist(), title, drawn))
    edges, _ = plots.bins(np.zeros(0))
    drawn = plots.histogram("followed", "", "", edges, False)
    found.append(_histogram("followed", None, None, "Histogram of what colours the objects", drawn))
    return found


def _histogram(
    name: str, column: str | None, edges: list[float] | None, title: str, drawn: plots.figure
) -> dict[str, object]:
    return {"name": name, "column": column, "edges": edges, "title": title, "figure": drawn}
