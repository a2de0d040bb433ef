"""One scene of an image file: what the readers of all formats hand to `images`."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from iaunet.grid import Box, box_shape

# No real image is compressed 20,000 times: where more is declared, data are missing.
LARGEST_RATIO = 20_000
LARGEST_UNCHECKED = 1 << 32

UM_PER_UNIT = {
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "pm": 1e-6,
    "picometer": 1e-6,
    "in": 25400.0,
    "inch": 25400.0,
}


@dataclass
class Scene:
    """One array of a file with named axes, read by boxes.

    Attributes
    ----------
    axes : str
        One letter per axis of the stored array: t, c, z, y, x, s (colour samples) or
        q (meaning unknown).
    channels : list of str
        Names along c; empty when the file has none.
    pixel_um : dict
        Micrometers by axis letter, where known.
    read : function
        Takes a box of the stored array and returns its values.
    warnings : list of str
        Filled while opening and while reading.
    full_rows : bool
        Whole rows lie together or are decoded at once (strips), so narrow boxes are costly.
    check : function
        Raises an `InputError` where the pixels of this scene are not there.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Box], np.ndarray]
    channels: list[str] = field(default_factory=list)
    pixel_um: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    full_rows: bool = False
    check: Callable[[], None] = lambda: None


def to_um(value: object, unit: object) -> float | None:
    r"""Return a length in micrometers, or None when it, or its unit, means nothing.

    Examples
    --------
    >>> to_um(325, "nm"), to_um(0.5, r"\u00B5m"), to_um(1, "pixel")
    (0.325, 0.5, None)
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    name = str(unit).strip().replace("\\u00B5", "µ").lower()
    if name not in UM_PER_UNIT or not math.isfinite(number) or number <= 0:
        return None
    return number * UM_PER_UNIT[name]


def framed(
    n_outer: int, dtype: np.dtype, frame: Callable[[tuple[int, ...], Box], np.ndarray]
) -> Callable[[Box], np.ndarray]:
    """Return a reader of boxes from one of frames.

    `frame` takes a position along the first `n_outer` axes and a box of the others.
    """

    def read(box: Box) -> np.ndarray:
        out = np.empty(box_shape(box), dtype)
        for position in itertools.product(*(range(s.start, s.stop) for s in box[:n_outer])):
            here = tuple(at - s.start for at, s in zip(position, box[:n_outer], strict=True))
            out[here] = frame(position, box[n_outer:])
        return out

    return read


def letters(dims: Sequence[str]) -> str:
    """Return the axes of a reader as letters of a `Scene`.

    Examples
    --------
    >>> letters(["T", "C", "Y", "X", "rotation"])
    'tcyxq'
    """
    return "".join(dim.lower() if dim in tuple("TCZYXS") else "q" for dim in dims)
