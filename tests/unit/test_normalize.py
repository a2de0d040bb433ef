import numpy as np
import pytest

from iaunet import normalize

DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32]


def drawn(dtype, rng, shape=(61, 53)):
    if np.dtype(dtype).kind == "f":
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-9, 9, shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("percentiles", [(1, 99.8), (0, 100), (37.5, 50)])
def test_limits_are_those_of_numpy(dtype, percentiles, rng):
    image = drawn(dtype, rng)
    found = normalize.limits(image, percentiles)
    np.testing.assert_allclose(
        (found.low, found.high), np.percentile(image.astype(np.float64), percentiles), rtol=1e-12
    )
    assert (found.minimum, found.maximum) == (image.min(), image.max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_do_not_depend_on_the_blocks_nor_their_order(dtype, rng):
    image = drawn(dtype, rng)
    whole = normalize.limits(image, (1, 99.8))
    blocks = [image[y : y + 7, x : x + 20] for y in range(0, 61, 7) for x in range(0, 53, 20)]
    histogram = normalize.Histogram(dtype)
    for index in rng.permutation(len(blocks)):
        histogram.add(blocks[index])
    histogram.refine([blocks[index] for index in rng.permutation(len(blocks))], (1, 99.8))
    assert histogram.limits((1, 99.8)) == whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_image_is_told(dtype):
    found = normalize.limits(np.full((5, 6), 7, dtype), (1, 99.8))
    assert found.constant
    assert (found.low, found.high) == (7, 7)


def test_limits_of_an_image_that_is_nearly_all_background_are_its_range():
    image = np.zeros((100, 100), np.uint16)
    image[3, 3] = 500
    found = normalize.limits(image, (1, 99.8))
    assert (found.low, found.high, found.widened, found.constant) == (0, 500, True, False)


def test_smallest_and_largest_values_are_counted():
    for dtype in (np.int32, np.uint32):
        ends = np.iinfo(dtype)
        found = normalize.limits(np.array([[ends.min, ends.max]], dtype), (0, 100))
        assert (found.low, found.high) == (ends.min, ends.max)
    tiny = np.array([-np.finfo(np.float32).max, -1e-45, -0.0, 1e-45], np.float32)
    assert normalize.limits(tiny, (0, 100)).low == -np.finfo(np.float32).max


def test_nan_and_infinity_are_counted_apart():
    histogram = normalize.Histogram(np.float32)
    histogram.add(np.array([1, np.nan, np.inf, -np.inf, 2], np.float32))
    assert (histogram.n_nan, histogram.n_infinite) == (1, 2)
    assert histogram.counts.sum() == 2


def test_no_finite_value_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="without finite values"):
        normalize.limits(np.full((2, 2), np.nan, np.float32), (1, 99))


def test_scaled_values_are_0_and_1_at_the_limits():
    scaled = normalize.scale(np.array([10, 20, 30], np.uint16), 10, 20)
    np.testing.assert_allclose(scaled, [0, 1, 2])
    assert scaled.dtype == np.float32


def test_a_constant_image_is_scaled_to_0():
    assert not normalize.scale(np.full((3, 3), 9, np.uint8), 9, 9).any()
