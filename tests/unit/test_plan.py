"""How many batches an image has, and which tilings do not fit a model."""

import re

import pytest

from iaunet import plan


def test_an_image_smaller_than_a_tile_is_one_batch():
    assert plan.n_batches((1, 1), (512, 512), None) == 1


def test_no_batch_is_larger_than_asked_for():
    for per_batch in (1, 2, 5, 100):
        count = plan.n_batches((1000, 1300), (256, 256), per_batch)
        assert (count - 1) * per_batch < 4 * 6 <= count * per_batch


@pytest.mark.parametrize("core", [(256, 256), (1024, 1024), (32, 128, 128)])
def test_automatic_batches_have_about_64_million_voxels(core):
    shape = tuple(20 * n for n in core) if len(core) == 2 else tuple(10 * n for n in core)
    voxels = 20**2 if len(core) == 2 else 10**3
    for n in core:
        voxels *= n
    assert plan.n_batches(shape, core, None) == -(-voxels // 2**26)


def test_a_tile_larger_than_a_batch_is_a_batch():
    assert plan.n_batches((40000, 20000), (20000, 20000), None) == 2


def test_the_number_of_jobs_is_bounded():
    assert plan.n_batches((10**6, 10**6), (16, 16), 1) == plan.MAX_BATCHES


@pytest.mark.parametrize(
    ("core", "halo", "says"),
    [
        ([30, 32], None, "multiples of the model's stride"),
        (None, [8, 64], "less than the core"),
        ([32, 32], [32, 0], "less than the core"),
    ],
)
def test_a_tiling_that_does_not_fit_is_explained(core, halo, says):
    (text,) = plan.tiling_problems(core, halo, stride=(4, 4), block=(64, 64))
    assert says in text


def test_a_tiling_that_fits_has_no_problems():
    assert plan.tiling_problems([32, 64], [31, 0], stride=(4, 4), block=(64, 64)) == []
    assert plan.tiling_problems(None, None, stride=(4, 4), block=(64, 64)) == []


@pytest.mark.parametrize(
    ("overrides", "emb_dim", "message"),
    [
        ({}, 0, None),
        ({"seed_window": [1, 2]}, 0, None),
        ({"seed_window": [1, 2, 2]}, 0, r"seed_window: found \[1, 2, 2\], needs 2 numbers"),
        ({"mode": "meanshift"}, 8, None),
        ({"mode": "meanshift", "vectors": "spatial"}, 0, None),
        ({"mode": "meanshift", "vectors": "conv"}, 0, "vectors conv compares embeddings"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_named(overrides, emb_dim, message):
    meta = {"ndim": 2, "clustering": {"mode": "local"}, "net": {"emb_dim": emb_dim}}
    found = plan.clustering_problems(overrides, meta)
    assert len(found) == (message is not None)
    assert all(re.search(message, text) for text in found)
