"""Figures of numbers, as PNG."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL_INCHES = (3.1, 2.45)
INK = "#334155"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#444444")
"""Colours that stay apart for colour-blind readers (Okabe and Ito)."""
LABEL_CHARACTERS = 32
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


def training_curves(history: Sequence[dict[str, float]]) -> bytes:
    """Draw the losses and the validation scores of a training run over its steps, as PNG.

    Each row of `history` has `step`, and what was measured since the row before.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * PANEL_INCHES[0], 1.3 * PANEL_INCHES[1]), layout="tight")
        left, right = figure.subplots(1, 2)
        for axis, title, names in (
            (left, "Loss terms", ("mask", "seed", "instance", "variance", "vote", "triplet")),
            (right, "Validation", ("ap50", "ap_mean")),
        ):
            for name in names:
                points = [(row["step"], row[name]) for row in history if name in row]
                if points:
                    axis.plot(*zip(*points, strict=True), label=name, linewidth=1.5)
            axis.set_title(title)
            axis.set_xlabel("step")
            if axis.lines:
                axis.legend(frameon=False, fontsize=8)
        left.set_yscale("log")
        right.set_ylim(0, 1)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def labelled(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Draw a table of pictures as PNG: floats are grey from 0 to 1, labels have colours."""
    with mpl.rc_context(STYLE):
        size = (1.9 * len(titles), 1.9 * len(rows) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        for place, axes in zip(
            rows, figure.subplots(len(rows), len(titles), squeeze=False), strict=True
        ):
            for picture, axis in zip(place, axes, strict=True):
                axis.set_axis_off()
                if picture.dtype.kind == "f":
                    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
                else:
                    axis.imshow(_coloured(picture), interpolation="nearest")
        for title, axis in zip(titles, figure.axes, strict=False):
            axis.set_title(textwrap.fill(title, 26), fontsize=7)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _coloured(labels: np.ndarray) -> np.ndarray:
    """Return RGB of labels: colours in the order of the labels, white background."""
    ids, which = np.unique(labels, return_inverse=True)
    colours = mpl.colormaps["tab20"](np.arange(len(ids)) % 20)[:, :3]
    colours[ids == 0] = 1
    return colours[which.reshape(labels.shape)]


@dataclass(frozen=True)
class Panel:
    """Values with intervals, one line per name, one colour per series.

    `series` has (value, low, high), or None, for every name; `zero` marks the line of 0.
    """

    title: str
    label: str
    names: Sequence[str]
    series: Mapping[str, Sequence[tuple[float, float, float] | None]]
    zero: bool = False


def intervals(panels: Sequence[Panel]) -> bytes:
    """Draw dots with intervals, two panels per row, as PNG; a panel without values says so."""
    with mpl.rc_context(STYLE):
        pairs = [panels[k : k + 2] for k in range(0, len(panels), 2)]
        heights = [
            1.1 + max(len(one.names) * (0.16 + 0.11 * len(one.series)) for one in pair)
            for pair in pairs
        ]
        figure = Figure(figsize=(11, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(len(pairs), 2, height_ratios=heights)
        for k, panel in enumerate(panels):
            _dots(figure.add_subplot(grid[k // 2, k % 2]), panel)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _dots(axis: Axes, panel: Panel) -> None:
    n = len(panel.series)
    axis.set_title(panel.title, pad=22 if n <= 3 else 36)
    axis.set_xlabel(panel.label)
    seen = False
    for k, (name, values) in enumerate(panel.series.items()):
        known = [(y, *value) for y, value in enumerate(values) if value is not None]
        known = [point for point in known if np.isfinite(point).all()]
        if not known:
            continue
        y, value, low, high = np.array(known).T
        height = y + (k - (n - 1) / 2) * 0.7 / n
        axis.hlines(height, low, high, color=SERIES[k], linewidth=1.6, alpha=0.6)
        axis.plot(value, height, "o", color=SERIES[k], markersize=4, label=name)
        seen = True
    names = [textwrap.fill(name, LABEL_CHARACTERS) for name in panel.names]
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(panel.names) - 0.4, -0.6)
    axis.grid(axis="x", color="#e2e8f0", linewidth=0.8)
    axis.set_axisbelow(True)
    if panel.zero:
        axis.axvline(0, color=INK, linewidth=1)
    if seen:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
        axis.legend(
            frameon=False, fontsize=8, ncols=min(n, 3), handletextpad=0, columnspacing=1, **place
        )
    else:
        axis.text(0.5, 0.5, "no values", ha="center", va="center", transform=axis.transAxes)
