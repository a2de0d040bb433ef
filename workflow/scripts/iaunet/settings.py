"""The thresholds of the clustering: names, ranges, defaults."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from iaunet import fixedpoint, meanshift
from iaunet.errors import InputError

RANGES = {
    "seed": (0.0, 1.0),
    "fg": (0.1, 1.0),
    "phi": (0.01, 0.99),
    "suppress": (0.01, 1.0),
    "smooth": (0, 3),
    "seed_window": (1, 64),
    "min_size": (1, 2**40),
    "identity": (0.0, 100.0),
    "bandwidth": (0.1, 100.0),
    "unit_px": (0.5, 1000.0),
    "window_px": (1, 1000),
    "join": (0.0, 1.0),
}
INTEGERS = ("smooth", "seed_window", "min_size", "window_px")
WORDS = {"mode": ("local", "meanshift"), "vectors": meanshift.VECTORS}
"""The numbers, with their ranges, and the words that settings may have."""


@dataclass(frozen=True)
class Settings:
    """Thresholds of the clustering.

    Attributes
    ----------
    mode : local or meanshift.
    fg : smallest foreground probability (inclusive) of an object voxel; at least 0.1,
        because the other outputs are stored only there.
    min_size : smallest number of voxels of an object, holes not counted.
    smooth : passes of a 3-wide box mean over the seed map.
    seed : smallest seed probability (exclusive) of a seed voxel; this and the next four are
        of mode local.
    phi : smallest value of a seed's Gaussian at which it accepts a voxel.
    suppress : largest value of the Gaussian between the centres of two seeds that stay apart.
    seed_window : px per axis around a seed in which it is the maximum.
    identity : weight of 1 - cos(identity of the voxel, identity of the seed); 0 is off.
    vectors : hybrid, spatial or conv, see `meanshift`; this and the rest are of mode meanshift.
    bandwidth : radius of the kernel, in units of the embedding.
    unit_px : px by which votes are apart when they are as different as embeddings 1 apart.
    window_px : largest distance per axis of votes (conv: of voxels) that are compared.
    join : smallest probability, by the model's weights, at which two objects that touch are
        fragments of one; 0: never. `min_size` is then that of the joined objects.
    """

    seed: float
    fg: float
    phi: float
    suppress: float
    smooth: int
    seed_window: tuple[int, ...]
    min_size: int
    identity: float
    mode: str
    vectors: str
    bandwidth: float
    unit_px: float
    window_px: int
    join: float

    @classmethod
    def from_dict(cls, values: Mapping[str, object], ndim: int) -> "Settings":
        """Return checked settings; what `values` lacks is taken from `DEFAULTS`."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
                raise InputError(f"clustering: unknown key '{name}'; did you mean '{near}'?")
        found = {**DEFAULTS, **values}
        window = found["seed_window"]
        window = list(window) if isinstance(window, (list, tuple)) else [window] * ndim
        if len(window) != ndim:
            raise InputError(
                f"clustering: seed_window has {len(window)} numbers, needs one or {ndim}"
            )
        found["seed_window"] = tuple(_number("seed_window", value) for value in window)
        for name in names:
            if name != "seed_window":
                found[name] = (_word if name in WORDS else _number)(name, found[name])
        return cls(**found)

    def as_dict(self) -> dict[str, object]:
        """Return the settings as JSON can store them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "seed_window": list(self.seed_window)}

    @property
    def kernel(self) -> meanshift.Kernel:
        """The kernel of mode meanshift."""
        return meanshift.Kernel.of(self.vectors, self.bandwidth, self.unit_px, self.window_px)

    @property
    def least_fragment(self) -> int:
        """Smallest number of voxels of what may be joined."""
        return 1 if self.join else self.min_size

    @property
    def fg_least(self) -> int:
        """Smallest stored ``fg`` of an object voxel."""
        return math.ceil(self.fg * fixedpoint.SCALE["fg"] - 1e-9)


DEFAULTS = {
    "seed": 0.5,
    "fg": 0.5,
    "phi": 0.5,
    "suppress": 0.5,
    "smooth": 0,
    "seed_window": 3,
    "min_size": 16,
    "identity": 0.0,
    "mode": "local",
    "vectors": "hybrid",
    "bandwidth": 1.5,
    "unit_px": 8.0,
    "window_px": 32,
    "join": 0.0,
}
"""What a model gets whose metadata leave a threshold out."""


def _number(name: str, value: object) -> float | int:
    """Return a setting as the number it must be, or say what is wrong with it."""
    low, high = RANGES[name]
    whole = name in INTEGERS
    wanted = f"needs {'a whole number' if whole else 'a number'} from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"clustering: {name} is '{value}', {wanted}")
    if not low <= value <= high or (whole and value != int(value)):
        raise InputError(f"clustering: {name} is {value}, {wanted}")
    return int(value) if whole else float(value)


def _word(name: str, value: object) -> str:
    """Return a setting as the word it must be, or say what is wrong with it."""
    if value not in WORDS[name]:
        raise InputError(f"clustering: {name} is '{value}', needs {' or '.join(WORDS[name])}")
    return value
