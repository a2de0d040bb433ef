"""A level of an image is the mean of the finer one."""

import itertools
import math

import numpy as np
import pytest

from iaunet.halving import halved_mean

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f4")
SIZES = [
    pytest.param((8, 10), (2, 2), id="even"),
    pytest.param((7, 9), (2, 2), id="odd"),
    pytest.param((1, 9), (1, 2), id="one row"),
    pytest.param((5, 7, 9), (2, 2, 2), id="3d"),
    pytest.param((5, 6, 9), (1, 2, 2), id="3d, z stays"),
    pytest.param((1, 1, 1), (1, 1, 1), id="one pixel"),
]


def drawn(dtype, shape):
    rng = np.random.default_rng(0)
    if dtype == "f4":
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-20, 20, shape)).astype(dtype)
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    values.flat[:4] = info.max
    return values


def window(values, place, factors):
    """Return the values under a pixel of the coarser level; the last of an odd number twice."""
    sides = [
        [min(k * f + i, n - 1) for i in range(f)]
        for k, f, n in zip(place, factors, values.shape, strict=True)
    ]
    return [values[at] for at in itertools.product(*sides)]


@pytest.mark.parametrize("dtype", DTYPES[:-1])
@pytest.mark.parametrize(("shape", "factors"), SIZES)
def test_integers_are_rounded_means_with_halves_up(dtype, shape, factors):
    values = drawn(dtype, shape)
    coarse = halved_mean(values, factors)
    assert coarse.dtype == values.dtype
    for place in np.ndindex(coarse.shape):
        under = [int(value) for value in window(values, place, factors)]
        assert coarse[place] == math.floor((2 * sum(under) + len(under)) / (2 * len(under)))


@pytest.mark.parametrize(("shape", "factors"), SIZES)
def test_floats_are_summed_along_z_then_y_then_x_in_double_precision(shape, factors):
    values = drawn("f4", shape)
    total, count = values.astype(np.float64), math.prod(factors)
    for axis, factor in enumerate(factors):
        if factor == 2:
            pairs = np.take(total, range(0, total.shape[axis], 2), axis)
            last = total.shape[axis] - 1
            others = [min(k + 1, last) for k in range(0, total.shape[axis], 2)]
            total = pairs + np.take(total, others, axis)
    np.testing.assert_array_equal(halved_mean(values, factors), (total / count).astype("f4"))


def test_a_part_of_an_array_has_the_means_of_its_copy():
    values = drawn("u2", (40, 50))[4:31, 3:44]
    np.testing.assert_array_equal(halved_mean(values, (2, 2)), halved_mean(values.copy(), (2, 2)))


def test_minus_zero_stays():
    assert np.signbit(halved_mean(np.full((2, 2), -0.0, np.float32), (2, 2))).all()
