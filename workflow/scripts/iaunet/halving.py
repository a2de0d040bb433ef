"""Means over 2 neighbours along each axis: a level of an image of the finer one."""

from collections.abc import Sequence

import numpy as np
from numba import njit


def halved_mean(values: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Return means over 2 neighbours along each axis whose factor is 2.

    Integers are rounded to nearest, halves up. The last of an odd number of pixels is
    averaged with itself. Floats are summed in float64 in a fixed order. At most three axes.
    """
    out = np.empty([-(-n // f) for n, f in zip(values.shape, factors, strict=True)], values.dtype)
    kind, bits = values.dtype.kind, values.dtype.itemsize * 8
    wide = np.dtype(np.float64 if kind == "f" else f"{kind}{min(bits * 2, 64) // 8}")
    lead = (1,) * (3 - values.ndim)
    row = np.empty(values.shape[-1] + 1, wide)
    _halve(
        values.reshape(lead + values.shape), (*lead, *factors), row, out.reshape(lead + out.shape)
    )
    return out


@njit(cache=True, nogil=True)
def _halve(values, factors, row, out):
    """Fill `out`; `row`: wide enough for the sum of four and one longer than a row of values."""
    depth, height, width = values.shape
    fz, fy, fx = factors
    wide = row.dtype.type
    for z in range(out.shape[0]):
        front, back = values[fz * z], values[min(fz * z + fz - 1, depth - 1)]
        for y in range(out.shape[1]):
            y0, y1 = fy * y, min(fy * y + fy - 1, height - 1)
            for x in range(width):
                row[x] = (wide(front[y0, x]) + wide(back[y0, x])) + (
                    wide(front[y1, x]) + wide(back[y1, x])
                )
            row[width] = row[width - 1]
            for x in range(out.shape[2]):
                # An axis that is not halved counts twice, so these are always eight.
                total = row[fx * x] + row[fx * x + fx - 1]
                if isinstance(total, float):
                    out[z, y, x] = total / 8
                else:
                    out[z, y, x] = (total + 4) >> 3
