"""How large objects are, asked of something that segments."""

import math

import numpy as np
import pytest
from scipy import ndimage

from iaunet import scale, sizing, synthetic


def disc_finder(smallest, largest):
    """Return a stand-in for a network that knows objects of some sizes only."""

    def segment(image):
        labels, n = ndimage.label(image > 0.5)
        sizes = scale.diameters(labels)
        known = [k + 1 for k in range(n) if smallest <= sizes[k].max() <= largest]
        return np.where(np.isin(labels, known), labels, 0)

    return segment


def drawn(shape, diameter, seed=0):
    labels = synthetic.draw_nuclei(
        shape, np.random.default_rng(seed), diameter_px=diameter, coverage=0.15, clustered=0
    )[1]
    return labels, (labels > 0).astype(np.float32)


@pytest.mark.parametrize("diameter", [5, 11, 24, 60, 110])
def test_the_diameter_is_found_though_the_network_knows_some_sizes_only(diameter):
    labels, image = drawn((700, 650), diameter)
    estimate, agreements = sizing.estimate(
        disc_finder(9, 45), lambda box: image[box], image.shape, (1, 1)
    )
    true = scale.median_diameter(scale.diameters(labels))
    assert max(agreements.values()) > 0.5
    np.testing.assert_allclose(estimate, true, rtol=0.25)


def test_one_blob_that_coarse_zooms_agree_on_does_not_outvote_many_objects():
    labels, image = drawn((256, 256), 9)
    assert labels.max() > 12
    rng = np.random.default_rng(0)

    def segment(window):
        if len(window) < 100:  # the whole image is one blob there
            return np.ones(window.shape, int)
        found = disc_finder(0, 400)(window)
        unsure = rng.permutation(found.max() + 1) % 3 == 0  # and a third is not always found
        return np.where(unsure[found], 0, found)

    estimate, _ = sizing.estimate(segment, lambda box: image[box], image.shape, (1, 1))
    true = scale.median_diameter(scale.diameters(labels))
    np.testing.assert_allclose(estimate, true, rtol=0.3)


def test_sections_that_are_far_apart_have_a_diameter_of_their_own():
    options = {"diameter_px": 20, "spacing": (3.0, 1.0, 1.0), "coverage": 0.1, "clustered": 0}
    labels = synthetic.draw_nuclei((40, 150, 160), np.random.default_rng(1), **options)[1]
    image = (labels > 0).astype(np.float32)
    estimate, _ = sizing.estimate(
        disc_finder(3, 45), lambda box: image[box], image.shape, (3, 1, 1)
    )
    true = scale.median_diameter(scale.diameters(labels))
    np.testing.assert_allclose(estimate, true, rtol=0.25)


def test_an_image_without_objects_has_no_diameter():
    image = np.zeros((90, 80), np.float32)
    segment = disc_finder(9, 45)
    assert sizing.estimate(segment, lambda box: image[box], image.shape, (1, 1))[0] is None


def test_only_a_window_is_segmented_however_large_the_image():
    seen = []

    def segment(image):
        seen.append(image.shape)
        return np.zeros(image.shape, int)

    sizes = []

    def read(box):
        sizes.append(math.prod(side.stop - side.start for side in box))
        return np.ones([side.stop - side.start for side in box], np.float32)

    sizing.estimate(segment, read, (9000, 7000), (1, 1))
    assert max(sizes) < 9000 * 7000 / 3  # the image is never read whole
    assert len(seen) == 6
    assert all(max(shape) <= 512 for shape in seen)
