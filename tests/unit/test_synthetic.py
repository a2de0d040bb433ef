import time

import numpy as np
import pytest
from scipy import ndimage

from iaunet import synthetic

CASES = [
    pytest.param((96, 128), (1, 1), id="2d"),
    pytest.param((16, 64, 64), (1, 1, 1), id="3d"),
    pytest.param((12, 64, 64), (4, 1, 1), id="3d, thick sections"),
]


def draw(shape, spacing, seed=0, **options):
    return synthetic.draw_nuclei(
        shape, np.random.default_rng(seed), diameter_px=14, spacing=spacing, **options
    )


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_labels_are_consecutive_and_every_object_is_face_connected(shape, spacing):
    image, labels = draw(shape, spacing, coverage=0.4, clustered=0.9)
    assert image.dtype == np.uint16
    assert labels.dtype == np.uint32
    assert image.shape == labels.shape == shape
    ids = np.unique(labels)
    np.testing.assert_array_equal(ids, np.arange(len(ids)))
    assert len(ids) > 5
    for label in ids[1:]:
        assert ndimage.label(labels == label)[1] == 1
        assert np.count_nonzero(labels == label) >= synthetic.MIN_VOXELS


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_the_same_seed_draws_the_same_image(shape, spacing):
    for one, other in zip(draw(shape, spacing), draw(shape, spacing), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(draw(shape, spacing)[0], draw(shape, spacing, seed=1)[0])


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_nuclei_are_brighter_than_the_background(shape, spacing):
    image, labels = draw(shape, spacing, photons=8, background=0.3)
    assert image[labels > 0].mean() > 1.2 * image[labels == 0].mean()


def test_coverage_is_met_roughly_and_crowded_nuclei_touch():
    _, labels = draw((256, 256), (1, 1), coverage=0.4, clustered=0.9)
    assert 0.3 < (labels > 0).mean() < 0.5
    beside = (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] > 0) & (labels[:, :-1] > 0)
    assert beside.sum() > 50


def test_objects_keep_their_physical_size_when_sections_are_thick():
    extents = []
    for step in (1, 3):
        _, labels = draw((96 // step, 96, 96), (step, 1, 1), coverage=0.08, clustered=0)
        boxes = ndimage.find_objects(labels)
        extents.append(np.median([(box[0].stop - box[0].start) * step for box in boxes]))
    assert abs(extents[0] - extents[1]) <= 3


@pytest.mark.parametrize("shape", [(40, 50), (5, 40, 50), (1, 16, 16), (3, 3)])
def test_no_coverage_draws_no_object(shape):
    image, labels = draw(shape, (1,) * len(shape), coverage=0)
    assert not labels.any()
    assert image.shape == shape


def test_drawn_background_is_not_constant():
    image = synthetic.draw_background((64, 80), np.random.default_rng(0))
    assert image.dtype == np.uint16
    assert image.std() > 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_options_draw_valid_images(ndim):
    rng = np.random.default_rng(3)
    for _ in range(5):
        shape = (16, 48, 48)[-ndim:]
        image, labels = synthetic.draw_nuclei(shape, rng, **synthetic.random_options(rng, ndim))
        assert image.max() > image.min()
        assert labels.max() < 1000


def test_one_or_four_axes_are_refused():
    with pytest.raises(ValueError, match="two or three axes"):
        draw((64,), (1,))
    with pytest.raises(ValueError, match="two or three axes"):
        draw((64, 64), (1, 1, 1))


def test_a_training_volume_is_drawn_quickly():
    started = time.process_time()
    draw((32, 128, 128), (2, 1, 1), coverage=0.3)
    assert time.process_time() - started < 2
