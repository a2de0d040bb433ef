"""Intensity scaling that is the same for all tiles of an image."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from iaunet.grid import Box

BINS = 1 << 16


@dataclass(frozen=True)
class Limits:
    """Intensity range of a whole image.

    `low` and `high` are the values at the two percentiles; when those are equal in an image
    that is not constant (nearly all background), they are its minimum and maximum, and
    `widened` is true.
    """

    low: float
    high: float
    minimum: float
    maximum: float
    constant: bool
    widened: bool


class Histogram:
    """Exact order statistics of an image that is seen block by block, in any order.

    Values are counted by the upper 16 bits of an order-preserving unsigned key; for dtypes of
    at most 16 bits that key is the value itself and one pass is enough. For 32-bit integers
    and floats a second pass (`refine`) counts the lower 16 bits of those values that fall into
    the same bin as a wanted order statistic. Both passes are exact, need at most a few MB and
    do not depend on the order or shape of the blocks. NaN and infinity are counted apart.

    Examples
    --------
    >>> histogram = Histogram(np.uint8)
    >>> histogram.add(np.array([1, 2, 3, 4], np.uint8))
    >>> histogram.limits((0, 50)).high
    2.5
    """

    def __init__(self, dtype: np.dtype | type) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in "uif" or self.dtype.itemsize > 4 or self.dtype == np.float16:
            raise ValueError(f"need integers or floats of at most 32 bits, got {self.dtype}")
        self.shift = 16 if self.dtype.itemsize == 4 else 0
        self.counts = np.zeros(BINS, np.int64)
        self.fine: dict[int, np.ndarray] = {}
        self.n_nan = 0
        self.n_infinite = 0

    def add(self, values: np.ndarray) -> None:
        """Count the values of one block (first pass)."""
        values = np.ascontiguousarray(values, self.dtype).ravel()
        if self.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                n_nan = int(np.isnan(values).sum())
                self.n_nan += n_nan
                self.n_infinite += int(values.size - finite.sum()) - n_nan
                values = values[finite]
        for part in _parts(values):
            _count(part if self.dtype == np.uint16 else _keys(part), self.shift, self.counts)

    def needs_refinement(self) -> bool:
        """Tell whether `refine` must see every block before exact limits are known."""
        return self.shift > 0

    def refine(self, blocks: Iterable[np.ndarray], percentiles: Sequence[float]) -> None:
        """Count the blocks again (second pass), only around the wanted order statistics."""
        if not self.shift:
            return
        ends = np.cumsum(self.counts)
        self.fine = {
            int(np.searchsorted(ends, rank, side="right")): np.zeros(BINS, np.int64)
            for rank in self._ranks(percentiles)
        }
        for values in blocks:
            for part in _parts(np.ascontiguousarray(values, self.dtype).ravel()):
                keys = _keys(part)
                upper = keys >> self.shift
                for bin_index, counts in self.fine.items():
                    _count(keys[upper == bin_index] & (BINS - 1), 0, counts)

    def limits(self, percentiles: Sequence[float]) -> Limits:
        """Return the limits at two percentiles, interpolated linearly as `np.percentile` does."""
        total = int(self.counts.sum())
        if not total:
            raise ValueError("limits of an image without finite values")
        minimum, maximum = self._value(0), self._value(total - 1)
        low, high = (self._percentile(percent, total) for percent in percentiles)
        widened = low >= high and minimum < maximum
        if widened:
            low, high = minimum, maximum
        return Limits(low, high, minimum, maximum, minimum == maximum, widened)

    def _ranks(self, percentiles: Sequence[float]) -> list[int]:
        total = int(self.counts.sum())
        if not total:
            return []
        ranks = {0, total - 1}
        for percent in percentiles:
            position = percent / 100 * (total - 1)
            ranks |= {int(np.floor(position)), int(np.ceil(position))}
        return sorted(ranks)

    def _percentile(self, percent: float, total: int) -> float:
        position = percent / 100 * (total - 1)
        below, above = int(np.floor(position)), int(np.ceil(position))
        first, second = self._value(below), self._value(above)
        return first + (second - first) * (position - below)

    def _value(self, rank: int) -> float:
        ends = np.cumsum(self.counts)
        key = int(np.searchsorted(ends, rank, side="right"))
        if self.shift:
            before = int(ends[key] - self.counts[key])
            lower = np.searchsorted(np.cumsum(self.fine[key]), rank - before, side="right")
            key = (key << self.shift) | int(lower)
        return float(_from_key(key, self.dtype))


def limits(image: np.ndarray, percentiles: Sequence[float]) -> Limits:
    """Return the limits of an image that is in memory; NaN and infinity are left out."""
    dtype = np.uint8 if image.dtype == bool else image.dtype
    if np.dtype(dtype).kind == "f":
        dtype = np.float32
    histogram = Histogram(dtype)
    histogram.add(image)
    histogram.refine([image[np.isfinite(image)]], percentiles)
    return histogram.limits(percentiles)


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return float32 values that are 0 at `low` and 1 at `high`; not clipped.

    A constant image (``low == high``) becomes 0 everywhere.
    """
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return (values.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))


def reader(
    image: np.ndarray, low: float, high: float, clip: Sequence[float]
) -> Callable[[Box], np.ndarray]:
    """Return a function that reads a box of an image, or of anything sliced alike, scaled."""

    def read(box: Box) -> np.ndarray:
        return scale(image[box], low, high).clip(*clip)

    return read


@njit(cache=True, nogil=True)
def _count(keys, shift, counts):
    """Add how many keys, shifted right, are 0, 1, ... to `counts`."""
    for key in keys:
        counts[key >> shift] += 1


def _parts(values: np.ndarray) -> Iterable[np.ndarray]:
    # Keys are copies: pieces of 1 M values keep them small.
    for start in range(0, values.size, 1 << 20):
        yield values[start : start + (1 << 20)]


def _keys(values: np.ndarray) -> np.ndarray:
    """Return unsigned integers in the order of the values (floats: of the IEEE bit pattern)."""
    bits = values.dtype.itemsize * 8
    if values.dtype.kind == "u":
        return values.astype(np.uint32)
    if values.dtype.kind == "i":
        return (values.astype(np.int64) + (1 << (bits - 1))).astype(np.uint32)
    raw = (values + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    return np.where(raw >> 31, ~raw, raw | np.uint32(1 << 31))


def _from_key(key: int, dtype: np.dtype) -> float | int:
    if dtype.kind == "u":
        return key
    if dtype.kind == "i":
        return key - (1 << (dtype.itemsize * 8 - 1))
    raw = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return np.array(raw, np.uint32).view(np.float32)[()]
