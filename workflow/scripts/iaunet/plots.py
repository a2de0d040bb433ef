"""Plots that a reader can turn over: Bokeh's figures, as text that a page holds.

A page has BokehJS, the figures and the numbers compressed, each in an element of its own;
`report.js` unpacks them, and does what happens between the figures. The same input gives the same
bytes: Bokeh's own ways to embed would name elements at random.
"""

import base64
import functools
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import bokeh
import numpy as np
from bokeh.document import Document
from bokeh.models import (
    BoxSelectTool,
    ColorBar,
    ColumnDataSource,
    GlyphRenderer,
    HoverTool,
    LassoSelectTool,
    LinearColorMapper,
    MetricLength,
    Model,
    PanTool,
    Range1d,
    ResetTool,
    ScaleBar,
    Span,
    TapTool,
    WheelZoomTool,
    ZoomInTool,
    ZoomOutTool,
)
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

from iaunet import bokeh_once
from iaunet.planes import Plane

bokeh_once.use()

INK, LINE = "#334155", "#e2e8f0"
BAR, PICKED = "#9dbbd3", "#d55e00"
SEAM, FOCUS = "#ffffff", "#ffffff"
NO_VALUE = "#9ca3af"
IDENTITY = ("#ffb000", "#56b4e9", "#2fd6a3", "#f0e442", "#ff8a5c", "#e6a3cc", "#b7c9ff", "#9be15d")
"""Bright colours that stay apart on a dark picture, also for most colour-blind readers."""
VALUES = Viridis256[92:]
"""Without its darkest part, which a dark picture would hide."""
ASPECTS = (1 / 3, 30)
"""Of a figure; a longer image gets room at its sides."""
LONGEST_NAME = 32
"""Characters of the name of a group beside its values."""
HUGE = 1e300
"""Values beyond it, which no one measures, are not in a histogram."""
LIBRARY = Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js"


@functools.cache
def library() -> str:
    """Return BokehJS, compressed."""
    return packed(LIBRARY.read_bytes())


def packed(content: bytes | Mapping | Sequence) -> str:
    """Return bytes, or what JSON can say, as compressed text that needs no escape in a page."""
    if not isinstance(content, bytes):
        text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        content = text.encode()
    # No time stamp: the same content gives the same bytes.
    small = gzip.compress(content, 9, mtime=0)
    return f"data:application/gzip;base64,{base64.b64encode(small).decode('ascii')}"


def document(places: Mapping[str, Model]) -> dict[str, object]:
    """Return figures as what ``Bokeh.embed.embed_items`` takes, by the id of their element."""
    holder = Document(title="figures")
    with holder.models.freeze():  # else it looks for all models again after every figure
        for model in places.values():
            holder.add_root(model)
    names: dict[str, str] = {}
    described = _renamed(holder.to_json(deferred=False), names)
    roots = {names[model.id]: place for place, model in places.items()}
    item = {"docid": "page", "roots": roots, "root_ids": list(roots)}
    return {"documents": {"page": described}, "items": [item]}


def _renamed(value: object, names: dict[str, str]) -> object:
    """Return what Bokeh wrote, with models numbered as they come: its own count never starts anew.

    Only models and references to them are dicts with an ``id``; text of ours never is a key.
    """
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("id"), str):
        names.setdefault(value["id"], f"p{len(names)}")
    return {
        key: names[one] if key == "id" and isinstance(one, str) else _renamed(one, names)
        for key, one in value.items()
    }


def plane_figures(planes: Sequence[Plane], unit: str | None) -> dict[str, figure]:
    """Return an empty figure for each plane; `report.js` puts the sections in.

    Planes of one image move together: they share the ranges of x and of y.

    Parameters
    ----------
    unit : of the lengths of the planes, or None for pixels, which have no scale bar.
    """
    mapper = LinearColorMapper(palette=VALUES, low=0, high=1, nan_color=NO_VALUE, name="colours")
    found: dict[str, figure] = {}
    for plane in planes:
        x_range, y_range = _ranges(plane)
        first = next(iter(found.values()), None)
        if plane.name == "XZ":
            x_range = first.x_range
        if plane.name == "ZY":
            y_range = first.y_range
        found[plane.name] = _plane_figure(plane, x_range, y_range, mapper, unit)
    return found


def _ranges(plane: Plane) -> tuple[Range1d, Range1d]:
    """Return the ranges of x, and of y, which goes down; wider than an image that is too long."""
    width, height = plane.width, plane.height
    wide = max(width, height * ASPECTS[0]) / 2
    high = max(height, width / ASPECTS[1]) / 2
    return (
        Range1d(width / 2 - wide, width / 2 + wide),
        Range1d(height / 2 + high, height / 2 - high),
    )


def aspect(plane: Plane) -> float:
    """Return width over height of the figure of a plane."""
    return float(np.clip(plane.width / plane.height, *ASPECTS))


def _plane_figure(
    plane: Plane, x_range: Range1d, y_range: Range1d, mapper: LinearColorMapper, unit: str | None
) -> figure:
    shown = figure(
        name=f"plane {plane.name}",
        x_range=x_range,
        y_range=y_range,
        aspect_ratio=aspect(plane),
        sizing_mode="stretch_width",
        min_border=0,
        outline_line_color=None,
        background_fill_color="#111111",
        tools="",
        toolbar_inner=True,
        toolbar_location="right" if plane.name == "XY" else None,
        output_backend="canvas",
    )
    shown.axis.visible = False
    shown.grid.visible = False
    picture = ColumnDataSource({"url": []}, name=f"picture {plane.name}")
    size = {"x": 0, "y": 0, "w": plane.width, "h": plane.height, "anchor": "top_left"}
    shown.image_url("url", source=picture, **size)
    overlay = ColumnDataSource({"url": []}, name=f"overlay {plane.name}")
    shown.image_url("url", source=overlay, name=f"outlines {plane.name} of all", **size)
    for dimension, places in (("height", plane.seams[0]), ("width", plane.seams[1])):
        for place in places:
            line = {"line_color": SEAM, "line_alpha": 0.6, "line_dash": [5, 4], "name": "seam"}
            shown.add_layout(Span(location=place, dimension=dimension, **line))
    _add_tools(shown, _outlines(shown, plane, mapper))
    if unit is not None and plane.name == "XY":
        shown.add_layout(_scale_bar(shown, unit))
    return shown


def _outlines(shown: figure, plane: Plane, mapper: LinearColorMapper) -> GlyphRenderer:
    """Add the outlines of objects, without any; white where the mouse is, and of those chosen."""
    empty = {name: [] for name in ("xs", "ys", "row", "value", "name", "text")}
    colour = {"field": "value", "transform": mapper}
    return shown.patches(
        "xs",
        "ys",
        source=ColumnDataSource(empty, name=f"objects {plane.name}"),
        name=f"outlines {plane.name}",
        line_color=colour,
        line_width=1.6,
        fill_color=colour,
        fill_alpha=0.0,
        selection_line_color=FOCUS,
        selection_line_width=2,
        selection_fill_color=colour,
        selection_fill_alpha=0.35,
        nonselection_line_color=colour,
        nonselection_line_alpha=0.75,
        nonselection_fill_alpha=0.0,
        hover_line_color=FOCUS,
        hover_line_width=2.4,
        hover_fill_color=colour,
        hover_fill_alpha=0.3,
    )


def _add_tools(shown: figure, outlines: GlyphRenderer) -> None:
    """Let the reader move, zoom, and point at or choose objects."""
    hover = HoverTool(renderers=[outlines], tooltips=[("", "@name"), ("", "@text")], visible=False)
    tap, box = TapTool(renderers=[outlines], visible=False), BoxSelectTool(renderers=[outlines])
    lasso = LassoSelectTool(renderers=[outlines], continuous=False)
    # With a key held down: the page would else not scroll past the picture.
    wheel, pan = WheelZoomTool(modifiers={"ctrl": True}), PanTool()
    shown.add_tools(pan, box, lasso, wheel, ZoomInTool(), ZoomOutTool(), ResetTool(), hover, tap)
    shown.toolbar.active_drag = pan
    shown.toolbar.active_scroll = wheel
    shown.toolbar.logo = None
    # It would else cover the side of the picture from top to bottom.
    shown.toolbar.stylesheets = [":host{height:min(100%,236px) !important}"]


def _scale_bar(shown: figure, unit: str) -> ScaleBar:
    """Return a scale bar that follows the zoom."""
    return ScaleBar(
        range=shown.x_range,
        unit=unit,
        dimensional=MetricLength(),
        location="bottom_left",
        label="@{value} @{unit}",
        label_text_color="#ffffff",
        bar_line_color="#ffffff",
        bar_line_width=3,
        background_fill_color="#000000",
        background_fill_alpha=0.45,
        border_line_color=None,
    )


def colour_bar() -> figure:
    """Return the colours of values; `report.js` sets the range."""
    mapper = LinearColorMapper(palette=VALUES, low=0, high=1, name="bar")
    shown = figure(
        height=44,
        sizing_mode="stretch_width",
        toolbar_location=None,
        min_border=0,
        outline_line_color=None,
        tools="",
        x_range=Range1d(0, 1),
        y_range=Range1d(0, 1),
        frame_height=1,
    )
    shown.axis.visible = False
    shown.grid.visible = False
    bar = ColorBar(
        color_mapper=mapper, height=12, width="auto", padding=2, margin=0, border_line_color=None
    )
    bar.major_label_text_color = INK
    shown.add_layout(bar, "below")
    return shown


def bins(values: np.ndarray, bounds: tuple[float, float] | None = None) -> tuple[np.ndarray, bool]:
    """Return the edges of the bins of a histogram, and whether they grow by a factor.

    Their number grows with the square root of the number of values, from 8 to 48; they grow by a
    factor when all values are positive, and the largest more than 30 times the smallest.
    """
    known = values[np.abs(values) < HUGE]
    n_bins = int(np.clip(np.sqrt(known.size) * 1.5, 8, 48))
    low, high = bounds or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    # A range so small that its bins could not be told apart is one value.
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        room = max(0.5, 1e-6 * abs(low))
        low, high = low - room, high + room
    if bounds is None and low > 0 and high / low > 30:
        return np.geomspace(low, high, n_bins + 1), True
    return np.linspace(low, high, n_bins + 1), False


def histogram(name: str, title: str, label: str, edges: np.ndarray, log: bool) -> figure:
    """Return an empty histogram, with a second one of the chosen objects before it.

    `report.js` counts; a range that is drawn in it chooses the objects in it.
    """
    shown = figure(
        name=f"histogram {name}",
        title=title,
        height=210,
        sizing_mode="stretch_width",
        x_axis_type="log" if log else "linear",
        x_range=Range1d(float(edges[0]), float(edges[-1])),
        x_axis_label=label,
        tools="",
        toolbar_location=None,
        outline_line_color=None,
    )
    shown.y_range.start = 0
    shown.title.text_color = INK
    shown.title.text_font_size = "13px"
    shown.axis.axis_label_text_color = INK
    shown.axis.major_label_text_color = INK
    shown.axis.axis_line_color = LINE
    shown.axis.axis_label_text_font_style = "normal"
    shown.xgrid.visible = False
    shown.ygrid.grid_line_color = LINE
    for kind, colour in (("all", BAR), ("picked", PICKED)):
        source = ColumnDataSource(
            {
                "left": edges[:-1].tolist(),
                "right": edges[1:].tolist(),
                "top": [0] * (len(edges) - 1),
            },
            name=f"{kind} {name}",
        )
        bars = shown.quad(
            "left", "right", "top", 0, source=source, fill_color=colour, line_color="#ffffff"
        )
        if kind == "all":
            tips = [("", "@left{0.[000]a} to @right{0.[000]a}: @top objects")]
            shown.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    shown.yaxis.ticker.desired_num_ticks = 4
    brush = BoxSelectTool(dimensions="width", renderers=[])
    shown.add_tools(brush)
    shown.toolbar.active_drag = brush
    return shown


def strips(names: Sequence[str]) -> figure:
    """Return an empty figure of one strip of dots per group, the first one on top.

    `summary.js` sets the values; a range that is drawn in it chooses the images in it.
    """
    n = len(names)
    shown = figure(
        height=90 + (30 if n <= 12 else 20) * n,
        sizing_mode="stretch_width",
        x_range=Range1d(0, 1),
        y_range=Range1d(n - 0.4, -0.6),
        x_axis_label=" ",
        tools="",
        toolbar_location=None,
        outline_line_color=None,
    )
    shown.name = "strips"
    shown.yaxis.ticker = list(range(n))
    shown.yaxis.major_label_overrides = {
        k: name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        for k, name in enumerate(names)
    }
    shown.xaxis.axis_label_text_font_style = "normal"
    shown.axis.axis_label_text_color = INK
    shown.axis.major_label_text_color = INK
    shown.axis.axis_line_color = LINE
    shown.grid.grid_line_color = LINE
    shown.ygrid.visible = False
    points = ColumnDataSource({"x": [], "y": [], "name": [], "text": []}, name="images")
    dots = shown.scatter(
        "x",
        "y",
        source=points,
        size=7,
        fill_color="#0072b2",
        fill_alpha=0.55,
        line_color=None,
        selection_fill_color=PICKED,
        selection_fill_alpha=0.9,
        nonselection_fill_alpha=0.2,
    )
    middles = ColumnDataSource({"x": [], "top": [], "bottom": []}, name="medians")
    shown.segment("x", "top", "x", "bottom", source=middles, line_color=INK, line_width=3)
    box = BoxSelectTool(renderers=[dots])
    tips = [("", "@name"), ("", "@text")]
    shown.add_tools(box, TapTool(renderers=[dots]), HoverTool(renderers=[dots], tooltips=tips))
    shown.toolbar.active_drag = box
    return shown
