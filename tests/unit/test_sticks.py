import numpy as np
import pytest
from scipy import ndimage

from iaunet import sticks


@pytest.fixture(scope="module")
def images():
    return [sticks.draw(np.random.default_rng(seed)) for seed in range(12)]


def test_every_stick_shows_its_least_area(images):
    for image, labels in images:
        assert image.shape == labels.shape == sticks.SHAPE
        assert set(np.unique(image)) == {0, 255}
        area = np.bincount(labels.ravel(), minlength=9)[1:]
        assert len(area) == sticks.N_STICKS
        assert area.min() >= 400
        assert area.max() <= 15 * 99 * 1.05


def test_some_sticks_are_in_pieces_and_some_pieces_are_joined(images):
    pieces = [ndimage.label(labels == k)[1] for _, labels in images for k in range(1, 9)]
    assert max(pieces) > 1
    components = [ndimage.label(labels > 0)[1] for _, labels in images]
    assert np.mean(components) < 6


def test_outlines_are_two_pixels_wide_half_of_them_inside(images):
    for image, labels in images:
        last = labels == sticks.N_STICKS  # nothing covers it
        outline = (image == 0) & last
        depth = ndimage.distance_transform_edt(np.pad(last, 1, constant_values=True))[1:-1, 1:-1]
        assert depth[outline].max() <= 2
        around = ndimage.binary_dilation(last) & ~last
        assert (image[around] == 0).mean() > 0.8
        assert (image[last & (depth > 2.5)] == 255).all()


def test_the_same_seed_draws_the_same_image():
    one, other = (sticks.draw(np.random.default_rng(5)) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
