"""Pictures of an image with outlines of its instances, as data that a page shows without files.

A view is one grey picture (JPEG) and vector lines over it. The lines are SVG paths in half
pixels, so that the crack between two pixels has whole coordinates; they stay thin at any
magnification and the page can switch them off.
"""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.measure import find_contours

# A display gamma below 1 lifts dim objects without saturating bright ones.
GAMMA = 0.65
# Beyond this an SVG slows a browser down; the outlines are then drawn as pixels.
MAX_OUTLINES = 2500


@dataclass(frozen=True)
class Layer:
    """Lines of one kind: a name that the page knows (its colour) and an SVG path, half pixels."""

    kind: str
    path: str


@dataclass(frozen=True)
class View:
    """One picture with lines over it; `width` and `height` are in pixels of equal spacing."""

    title: str
    picture: str
    width: float
    height: float
    scale: tuple[float, float]
    layers: tuple[Layer, ...] = ()
    overlay: str | None = None
    bar: tuple[float, str] | None = None
    caption: str = ""
    max_width_px: int = 1200
    tags: tuple[tuple[float, float, str], ...] = ()


def view(
    plane: np.ndarray,
    *,
    title: str,
    limits: Sequence[float],
    spacing: Sequence[float] = (1.0, 1.0),
    unit_um: float | None = None,
    layers: Sequence[Layer] = (),
    overlay: str | None = None,
    caption: str = "",
    longest_px: int = 1200,
    tallest_px: int = 1200,
    smallest_px: int = 480,
    tags: Sequence[tuple[float, float, str]] = (),
) -> View:
    """Return a view of one plane.

    Parameters
    ----------
    plane : array, shape (rows, columns)
        Intensities.
    limits : two numbers
        Intensities shown black and white.
    spacing : two numbers
        Relative distance of rows and of columns; their ratio is the pixel aspect.
    unit_um : float or None
        Micrometers that a spacing of 1 stands for; None when unknown, then no scale bar.
    tags : sequence of (left, top, text)
        Words over the view, at per cent of its width and height.
    longest_px, tallest_px, smallest_px : int
        Largest width and height on the screen, and the least long side of the stored picture.
    """
    rows, columns = plane.shape
    finest = min(spacing)
    down, across = spacing[0] / finest, spacing[1] / finest
    width, height = columns * across, rows * down
    max_width_px = max(1, round(min(longest_px, tallest_px * width / height)))
    bar = None if unit_um is None else scale_bar(width * finest * unit_um)
    return View(
        title=title,
        picture=jpeg(grey(plane, limits), (height, width), smallest_px),
        width=round(width, 3),
        height=round(height, 3),
        scale=(round(across / 2, 6), round(down / 2, 6)),
        layers=tuple(layer for layer in layers if layer.path),
        overlay=overlay,
        bar=bar,
        caption=caption,
        max_width_px=max_width_px,
        tags=tuple(tags),
    )


def grey(plane: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Return uint8 intensities between two limits, with a gamma that shows dim objects."""
    low, high = float(limits[0]), float(limits[1])
    if not high > low:
        return np.full(plane.shape, 96, np.uint8)
    scaled = (np.nan_to_num(plane.astype(np.float32)) - low) / (high - low)
    return np.round(255 * np.clip(scaled, 0, 1) ** GAMMA).astype(np.uint8)


def jpeg(pixels: np.ndarray, shape: Sequence[float], smallest_px: int, quality: int = 84) -> str:
    """Return grey pixels as a JPEG data URI, enlarged so that compression leaves no blocks."""
    picture = Image.fromarray(pixels)
    enlarge = max(1.0, smallest_px / max(shape))
    size = (max(1, round(shape[1] * enlarge)), max(1, round(shape[0] * enlarge)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return data_uri("image/jpeg", stream.getvalue())


def data_uri(media_type: str, content: bytes) -> str:
    """Return bytes as the text that an HTML attribute can hold."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def scale_bar(width_um: float) -> tuple[float, str] | None:
    """Return the bar's share of the width and its text; about a fifth of the width, 1-2-5 steps.

    Examples
    --------
    >>> scale_bar(110.0)
    (0.182, '20 µm')
    """
    if not (math.isfinite(width_um) and width_um > 0):
        return None
    target = width_um / 4
    power = 10.0 ** math.floor(math.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target * 1.000001)
    if length >= 1000:
        text = f"{length / 1000:g} mm"
    elif length < 1:
        text = f"{length * 1000:g} nm"
    else:
        text = f"{length:g} µm"
    return round(length / width_um, 3), text


def contours(labels: np.ndarray, *, closed: bool) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield the label and the outlines of every instance of a plane, those of holes too.

    An outline is an int array (n, 2) of row and column in half pixels, without points where it
    does not turn. Of an object that reaches the border it is closed along it, or stays open and
    leaves the plane by half a pixel.
    """
    padded = np.pad(labels, 1, mode="constant" if closed else "edge")
    ids, compact = _numbered(padded)
    compact += int(ids[0] != 0)
    names = ids if ids[0] == 0 else [0, *ids]
    for index, box in enumerate(ndimage.find_objects(compact), start=1):
        if box is None:
            continue
        near = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        start = np.array([side.start for side in near])
        found = find_contours((compact[near] == index).astype(np.float64), 0.5)
        lines = [np.rint(2 * (line + start) - 1).astype(np.int64) for line in found]
        yield int(names[index]), [line[_turns(line)] for line in lines]


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels that there are, sorted, and the place of each pixel's label in them.

    Runs of one label are sorted instead of pixels, which takes a tenth of the time.
    """
    flat = labels.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))
    ids, which = np.unique(flat[starts], return_inverse=True)
    lengths = np.diff(starts, append=flat.size)
    return ids, np.repeat(which.astype(np.int32), lengths).reshape(labels.shape)


def _turns(points: np.ndarray) -> np.ndarray:
    """Tell at which points a line begins, ends or changes its direction."""
    steps = np.diff(points, axis=0)
    turns = np.ones(len(points), bool)
    turns[1:-1] = (steps[1:] != steps[:-1]).any(axis=1)
    return turns


def outlines(labels: np.ndarray, kind: str) -> Layer:
    """Return the outlines of all instances of a window, open where it cuts them."""
    found = contours(labels, closed=False)
    return Layer(kind, "".join(_path(line) for _, lines in found for line in lines))


def _path(points: np.ndarray) -> str:
    """Return an SVG path of (row, column) points."""
    closed = len(points) > 2 and (points[0] == points[-1]).all()
    lines = "".join(f"l{dx} {dy}" for dy, dx in np.diff(points, axis=0).tolist())
    # "l" may be left out between relative lines, and a minus sign separates numbers.
    lines = "l" + lines.replace("l", " ").strip().replace(" -", "-") if lines else ""
    return f"M{points[0, 1]} {points[0, 0]}{lines}" + ("z" if closed else "")


def grid_lines(
    shape: Sequence[int], origin: Sequence[float], step: Sequence[float], kind: str
) -> Layer:
    """Return the tile borders that cross a window.

    Parameters
    ----------
    shape : two int
        Rows and columns of the window, in its own pixels.
    origin, step : two numbers
        Where the window begins and how long a tile is, in the same pixels.
    """
    rows, columns = shape
    lines = []
    for axis, length in enumerate(shape):
        first = math.floor(origin[axis] / step[axis]) + 1
        last = math.ceil((origin[axis] + length) / step[axis])
        for index in range(first, last):
            at = f"{2 * (index * step[axis] - origin[axis]):g}"
            lines.append(f"M0 {at}H{2 * columns}" if axis == 0 else f"M{at} 0V{2 * rows}")
    return Layer(kind, "".join(lines))


def outline_pixels(labels: np.ndarray, colour: Sequence[int]) -> str:
    """Return the borders of all instances of a plane as a transparent PNG data URI."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    picture = Image.fromarray(edges.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, *colour])
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=bytes([0, 190]), bits=1)
    return data_uri("image/png", stream.getvalue())
