"""Pictures of a comparison: accuracy as curves, and images with the outlines of each method."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries

from iaunet import figures, metrics

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#7f7f7f", "#cc79a7")
OUTLINE_RGB = (255, 190, 0)
ENLARGE_PX = 512
GAMMA = 0.65


def figure(
    curves: Mapping[str, Sequence[float | None]],
    bins: Sequence[str],
    ap_of_bins: Mapping[str, Sequence[float | None]],
) -> bytes:
    """Return AP by IoU threshold, and AP50 by diameter, of every method, as SVG."""
    with mpl.rc_context(figures.STYLE):
        drawn = Figure(figsize=(8.4, 3.1), layout="tight")
        left, right = drawn.subplots(1, 2)
        for k, name in enumerate(curves):
            style = {"color": COLOURS[k % len(COLOURS)], "label": name}
            left.plot(metrics.THRESHOLDS, _numbers(curves[name]), **style)
            right.plot(range(len(bins)), _numbers(ap_of_bins[name]), marker="o", **style)
        left.set(title="Accuracy", xlabel="IoU threshold", ylabel="AP, pooled", ylim=(0, 1))
        right.set(title="AP50 by size", xlabel="diameter, px", ylim=(0, 1))
        right.set_xticks(range(len(bins)), bins, fontsize=8)
        left.legend(frameon=False, fontsize=8)
        stream = io.BytesIO()
        drawn.savefig(stream, format="svg", metadata={"Date": None})
        return stream.getvalue()


def worst(sheets: Sequence[tuple[str, np.ndarray, Mapping[str, np.ndarray]]]) -> bytes:
    """Return a sheet of images as PNG: a row per image, a column per set of labels.

    Each of `sheets` is (name, image, labels by title).
    """
    columns = 1 + max(len(labels) for _, _, labels in sheets)
    with mpl.rc_context(figures.STYLE):
        drawn = Figure(figsize=(3 * columns, 3.2 * len(sheets)), layout="tight")
        axes = drawn.subplots(len(sheets), columns, squeeze=False)
        for row, (name, image, labels) in zip(axes, sheets, strict=True):
            plain = grey(image)
            row[0].imshow(plain)
            row[0].set_title(f"{name[:12]} {image.shape[0]} x {image.shape[1]}", fontsize=8)
            for axis, (title, found) in zip(row[1:], labels.items(), strict=True):
                axis.imshow(outlined(plain, found))
                axis.set_title(title, fontsize=8)
            for axis in row:
                axis.axis("off")
        stream = io.BytesIO()
        drawn.savefig(stream, format="png", dpi=110, metadata={"Software": None})
        return stream.getvalue()


def grey(image: np.ndarray) -> np.ndarray:
    """Return the image as uint8 (Y, X, 3), stretched, with dim objects lifted."""
    low, high = np.percentile(image, (1, 99.8))
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1) ** GAMMA
    return np.repeat(np.rint(255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def outlined(plain: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the picture, small ones enlarged, with a line one pixel wide around each object."""
    times = max(1, ENLARGE_PX // max(labels.shape))
    large = plain.repeat(times, 0).repeat(times, 1)
    edge = find_boundaries(labels.repeat(times, 0).repeat(times, 1), mode="inner")
    large[edge] = OUTLINE_RGB
    return large


def number(value: float | None) -> str:
    """Return a score with two decimals; a dash where there is nothing to score."""
    return "–" if value is None else f"{value:.2f}"


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
