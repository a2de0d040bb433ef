import numpy as np
import pytest

from iaunet import fixedpoint

NAMES = sorted(fixedpoint.SCALE)


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_number_is_the_image_of_the_value_it_means(name):
    low, high = fixedpoint.RANGE[name]
    stored = np.arange(low, high + 1)
    values = (stored / fixedpoint.SCALE[name]).astype(np.float32)
    found = fixedpoint.quantise(name, values)
    assert found.dtype == fixedpoint.DTYPE[name]
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("name", NAMES)
def test_values_beyond_the_range_are_stored_as_its_ends(name):
    low, high = fixedpoint.RANGE[name]
    values = np.array([-np.inf, -1e9, 1e9, np.inf], dtype=np.float32)
    assert fixedpoint.quantise(name, values).tolist() == [low, low, high, high]


def test_bandwidth_of_every_stored_number_is_its_exponential():
    np.testing.assert_allclose(np.log(fixedpoint.SIGMA) * 32, np.arange(256), atol=1e-9)


def test_an_offset_is_kept_to_half_a_sixteenth_of_a_pixel(rng):
    offsets = rng.uniform(-200, 200, 1000).astype(np.float32)
    kept = fixedpoint.quantise("off", offsets) / fixedpoint.SCALE["off"]
    assert np.abs(kept - offsets).max() <= 1 / 32 + 1e-5
