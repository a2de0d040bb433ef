"""Two grids of one image: laws of resampling."""

import numpy as np
import pytest
import torch

from iaunet import grid, scale

SHAPES = [
    pytest.param((37, 50), (37, 50), id="same"),
    pytest.param((37, 50), (90, 121), id="enlarged"),
    pytest.param((64, 81), (17, 20), id="shrunk"),
    pytest.param((9, 40, 33), (9, 13, 70), id="3d, one axis each way"),
    pytest.param((1, 5), (3, 1), id="single voxels"),
]


def whole(shape):
    return tuple(slice(0, n) for n in shape)


@pytest.mark.parametrize(("shape", "to"), SHAPES)
def test_windows_have_the_bits_of_the_whole(shape, to, rng):
    image = rng.random(shape, dtype=np.float32)
    once = scale.resampled(lambda box: image[box], shape, to, whole(to))
    assert once.shape == to
    core = tuple(max(1, n // 3) for n in to)
    for tile in grid.tiles(to, core):
        part = scale.resampled(lambda box: image[box], shape, to, tile.core)
        np.testing.assert_array_equal(part, once[tile.core])


@pytest.mark.parametrize(("shape", "to"), SHAPES)
def test_a_constant_image_stays_constant(shape, to):
    image = np.full(shape, 0.7, np.float32)
    found = scale.resampled(lambda box: image[box], shape, to, whole(to))
    np.testing.assert_allclose(found, 0.7, rtol=1e-6)


@pytest.mark.parametrize(("shape", "to"), [p.values for p in SHAPES if len(p.values[0]) == 2])
def test_it_is_the_antialiased_linear_interpolation_of_torch(shape, to, rng):
    image = rng.random(shape, dtype=np.float32)
    found = scale.resampled(lambda box: image[box], shape, to, whole(to))
    there = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], to, mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(found, there[0, 0].numpy(), atol=1e-5)


def test_the_same_grid_gives_the_image_itself(rng):
    image = rng.random((11, 12), dtype=np.float32)
    found = scale.resampled(lambda box: image[box], (11, 12), (11, 12), whole((11, 12)))
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(("shape", "to"), SHAPES)
def test_labels_that_are_enlarged_and_shrunk_again_are_the_same(shape, to, rng):
    finer = tuple(max(a, b) for a, b in zip(shape, to, strict=True))
    labels = rng.integers(0, 9, shape)
    there = labels[np.ix_(*scale.nearest(shape, finer, whole(finer)))]
    back = there[np.ix_(*scale.nearest(finer, shape, whole(shape)))]
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize("diameter", [1.5, 5, 11, 12, 30, 48, 52, 80, 190])
def test_a_resampled_diameter_lies_in_the_range(diameter):
    found = diameter * scale.factor(diameter, 12, 48)
    assert 12 / scale.TOLERANCE <= found <= 48 * scale.TOLERANCE


def test_no_axis_is_enlarged_or_shrunk_without_end():
    assert scale.factor(0.01, 12, 48) == scale.LARGEST_FACTOR
    assert scale.factor(1e6, 12, 48) == 1 / scale.LARGEST_FACTOR


@pytest.mark.parametrize("radii", [(9, 9), (5, 14), (4, 9, 13)])
def test_an_ellipsoid_has_its_own_diameters(radii):
    at = np.meshgrid(*(np.arange(-20, 21),) * len(radii), indexing="ij")
    inside = sum((a / r) ** 2 for a, r in zip(at, radii, strict=True)) <= 1
    (found,) = scale.diameters(inside * 7)
    np.testing.assert_allclose(found, 2 * np.array(radii), rtol=0.05)


def test_there_are_no_diameters_without_objects():
    assert scale.diameters(np.zeros((4, 5), int)).shape == (0, 2)
