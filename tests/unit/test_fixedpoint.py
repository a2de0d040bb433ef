import numpy as np
import pytest
import torch

from iaunet import fixedpoint, predict

NAMES = sorted(fixedpoint.SCALE)


def stored_as(name, values):
    found = predict.in_fixed_point(name, torch.from_numpy(values)).numpy()
    return found.view(fixedpoint.DTYPE[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_value_becomes_the_nearest_number_and_halves_the_even_one(name, rng):
    low, high = fixedpoint.RANGE[name]
    halves = (np.arange(low, high) + 0.5) / fixedpoint.SCALE[name]
    values = np.concatenate([halves, rng.normal(0, 3, 1000)]).astype(np.float32)
    wanted = np.clip(np.rint(values * np.float32(fixedpoint.SCALE[name])), low, high)
    np.testing.assert_array_equal(stored_as(name, values), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_number_is_the_image_of_the_value_it_means(name):
    low, high = fixedpoint.RANGE[name]
    stored = np.arange(low, high + 1)
    values = (stored / fixedpoint.SCALE[name]).astype(np.float32)
    found = stored_as(name, values)
    assert found.dtype == fixedpoint.DTYPE[name]
    np.testing.assert_array_equal(found, stored)


@pytest.mark.parametrize("name", NAMES)
def test_values_beyond_the_range_are_stored_as_its_ends(name):
    low, high = fixedpoint.RANGE[name]
    values = np.array([-np.inf, -1e9, 1e9, np.inf], dtype=np.float32)
    assert stored_as(name, values).tolist() == [low, low, high, high]


def test_bandwidth_of_every_stored_number_is_its_exponential():
    np.testing.assert_allclose(np.log(fixedpoint.SIGMA) * 32, np.arange(256), atol=1e-9)


def test_an_offset_is_kept_to_half_a_sixteenth_of_a_pixel(rng):
    offsets = rng.uniform(-200, 200, 1000).astype(np.float32)
    kept = stored_as("off", offsets) / fixedpoint.SCALE["off"]
    assert np.abs(kept - offsets).max() <= 1 / 32 + 1e-5
