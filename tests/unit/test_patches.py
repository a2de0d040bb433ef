from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from iaunet import patches

PLAIN = patches.Augmentation(zoom=(1, 1), small_px=0, zoom_small=(1, 1), anisotropy=1, empty=0)
WILD = patches.Augmentation(
    zoom=(0.6, 1.8), small_px=99, zoom_small=(1, 3), anisotropy=1.3, empty=0
)


def annotated(shape, n, rng):
    labels = np.zeros(shape, np.int32)
    for label in range(1, n + 1):
        box = tuple(slice(s, s + rng.integers(4, 9)) for s in rng.integers(0, np.array(shape) - 9))
        labels[box] = 10 * label
    image = rng.normal(0.2, 0.1, shape).astype(np.float32) + (labels > 0)
    return patches.annotate("drawn", "g", image, labels, (1.0,) * len(shape))


@pytest.mark.parametrize("shape", [(60, 50), (16, 40, 44)], ids=["2d", "3d"])
def test_annotation_measures_every_instance(shape, rng):
    found = annotated(shape, 7, rng)
    assert sorted(np.unique(found.labels)) == list(range(found.n + 1))
    for label in range(1, found.n + 1):
        inside = found.labels == label
        assert found.size[label] == inside.sum()
        assert found.labels[tuple(found.centre[label].astype(int))] == label
        distance = ndimage.distance_transform_edt(np.pad(inside, 1))[(slice(1, -1),) * len(shape)]
        expected = np.rint(255 * distance[inside] / distance.max()).clip(1)
        np.testing.assert_array_equal(found.depth[inside], expected)
    assert (found.depth[found.labels == 0] == 0).all()


def test_an_image_without_objects_can_be_annotated():
    found = patches.annotate("e", "e", np.zeros((9, 9), np.float32), np.zeros((9, 9), int), (1, 1))
    assert found.n == 0


@pytest.mark.parametrize("augmentation", [PLAIN, WILD], ids=["plain", "wild"])
@pytest.mark.parametrize(
    ("shape", "crop"), [((80, 90), (32, 32)), ((20, 60, 50), (8, 24, 24))], ids=["2d", "3d"]
)
def test_centres_stay_on_their_instances_through_all_augmentation(shape, crop, augmentation, rng):
    image = annotated(shape, 6, rng)
    sampler = patches.Sampler([image], crop, 4, augmentation, seed=3)
    checked = 0
    for step in range(6):
        batch = sampler.batch(step)
        for labels, centre in zip(batch["labels"].numpy(), batch["centre"].numpy(), strict=True):
            for label in np.unique(labels[labels > 0]):
                middle = centre[(slice(None), *np.argwhere(labels == label)[0])]
                at = np.rint(middle).astype(int)
                if ((at >= 1) & (at < np.array(crop) - 1)).all():
                    around = tuple(slice(a - 1, a + 2) for a in at)
                    assert (labels[around] == label).any()
                    checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("shape", "crop"), [((80, 90), (32, 32)), ((20, 60, 50), (8, 24, 24))], ids=["2d", "3d"]
)
def test_classes_stay_on_their_instances_through_all_augmentation(shape, crop, rng):
    one = annotated(shape, 6, rng)
    known = replace(one, classes=np.where(one.labels > 0, 1 + one.labels % 3, 0).astype(np.int16))
    batches = patches.Sampler([known, one], crop, 4, WILD, seed=3)
    seen = set()
    for step in range(6):
        batch = batches.batch(step)
        for labels, classes in zip(batch["labels"], batch["classes"], strict=True):
            if (classes < 0).all():
                seen.add("unknown")
                continue
            assert torch.equal(classes, torch.where(labels > 0, 1 + labels % 3, 0))
            seen.add("known")
    assert seen == {"known", "unknown"}
    assert "classes" not in patches.Sampler([one], crop, 1, WILD, seed=3).batch(0)


def test_both_views_of_a_pair_place_an_instance_at_the_same_spot(rng):
    image = annotated((90, 90), 6, rng)
    sampler = patches.Sampler([image], (40, 40), 3, WILD, seed=1)
    both = 0
    for step in range(5):
        batch = sampler.batch(step)
        for k in range(0, 6, 2):
            spots = []
            for view in (k, k + 1):
                labels, centre = batch["labels"][view].numpy(), batch["centre"][view].numpy()
                shift = batch["shift"][view].numpy()
                spots.append(
                    {
                        label: centre[(slice(None), *np.argwhere(labels == label)[0])] + shift
                        for label in np.unique(labels[labels > 0])
                    }
                )
            for label in set(spots[0]) & set(spots[1]):
                np.testing.assert_allclose(spots[0][label], spots[1][label], atol=1e-3)
                both += 1
    assert both > 5


def test_a_batch_depends_on_seed_and_step_alone(rng):
    image = annotated((60, 60), 5, rng)
    one = patches.Sampler([image], (32, 32), 2, WILD, seed=7)
    other = patches.Sampler([image], (32, 32), 2, WILD, seed=7)
    one.batch(0)
    a, b = one.batch(5), other.batch(5)
    for key in ("image", "labels", "depth", "centre"):
        assert bool((a[key] == b[key]).all()), key
    assert not bool((one.batch(6)["image"] == a["image"]).all())


def test_crops_larger_than_the_image_are_filled_with_background(rng):
    image = annotated((20, 24), 2, rng)
    batch = patches.Sampler([image], (64, 64), 1, PLAIN, seed=0).batch(0)
    assert batch["image"].shape == (2, 1, 64, 64)
    assert set(np.unique(batch["labels"])) <= {0, 1, 2}
    assert int((batch["labels"][0] > 0).sum()) == int((image.labels > 0).sum())


def test_empty_crops_hold_no_label(rng):
    image = annotated((60, 60), 5, rng)
    only_empty = patches.Augmentation(
        zoom=(1, 1), small_px=0, zoom_small=(1, 1), anisotropy=1, empty=1.0
    )
    batch = patches.Sampler([image], (32, 32), 2, only_empty, seed=0).batch(0)
    assert not bool(batch["labels"].any())
    assert bool(batch["image"].isfinite().all())


@pytest.mark.parametrize(
    ("shape", "crop"), [((90, 80), (32, 32)), ((20, 60, 50), (8, 24, 24))], ids=["2d", "3d"]
)
def test_every_crop_shows_something_that_is_annotated_and_hides_the_rest(shape, crop, rng):
    labels = np.zeros(shape, np.int32)
    labels[..., 2:9, 2:9], labels[..., 40:49, 30:49] = 5, 7
    roi = np.zeros(shape, bool)
    roi[..., 42:48, 33:70] = True
    image = rng.normal(size=shape).astype(np.float32)
    found = patches.annotate("a", "g", image, labels, (1.0,) * len(shape), roi)
    assert found.n == 1
    assert found.size[1] == (labels == 7).sum()
    np.testing.assert_array_equal(found.labels >= 0, roi)
    sampler = patches.Sampler([found], crop, 4, PLAIN, seed=0)
    for step in range(10):
        batch = sampler.batch(step)
        assert bool((batch["labels"] >= 0).flatten(1).any(1).all())
        assert bool(((batch["labels"] < 0) == (batch["depth"][:, 0] < 0)).all())
        cut = batch["labels"] == 1
        assert int(cut.flatten(1).sum(1).max()) <= (roi & (labels == 7)).sum()


def test_the_shares_of_processes_are_the_pairs_of_the_batch_of_one(rng):
    sampler = patches.Sampler([annotated((60, 60), 5, rng)], (32, 32), 5, WILD, seed=7)
    whole = sampler.batch(4)
    for rank in range(2):
        part = sampler.batch(4, range(rank, 5, 2))
        for k, pair in enumerate(range(rank, 5, 2)):
            for key in ("image", "labels", "depth", "centre"):
                same = part[key][2 * k : 2 * k + 2] == whole[key][2 * pair : 2 * pair + 2]
                assert bool(same.all()), key


def test_crops_come_from_an_image_as_often_as_its_weight_says(rng):
    one = annotated((40, 40), 3, rng)
    given = [replace(one, weight=weight) for weight in (3.0, None, 0.5)]
    np.testing.assert_allclose(patches.probabilities(given), np.array([3, 1, 0.5]) / 4.5)
    sampler = patches.Sampler(given, (16, 16), 1, PLAIN, seed=0)
    np.testing.assert_allclose(sampler.weight, patches.probabilities(given))
    plain = patches.probabilities([one, one, replace(one, group="other")])
    np.testing.assert_allclose(plain, np.array([2**-0.5, 2**-0.5, 1]) / (1 + 2**0.5))


def test_an_id_in_several_pieces_stays_one_instance_and_is_counted(rng):
    labels = np.zeros((30, 30), np.uint16)
    labels[2:5, 2:5] = labels[10:14, 20:25] = 700
    labels[20:25, 2:9], labels[25:28, 9:12] = 30, 30
    found = patches.annotate("a", "a", np.ones((30, 30)), labels, (1, 1))
    assert found.pieces[1:].tolist() == [1, 2]


def test_a_voxel_takes_seven_bytes(rng):
    found = annotated((40, 50), 3, rng)
    kept = sum(array.nbytes for array in (found.image, found.labels, found.depth))
    assert kept == 7 * 40 * 50


@pytest.mark.parametrize("shape", [(60, 150), (16, 40, 120)], ids=["2d", "3d"])
def test_split_instances_have_middles_of_parts_and_scores_of_objects(shape, rng):
    labels = np.zeros(shape, np.int32)
    labels[(..., slice(10, 16), slice(5, 110))] = 4
    labels[(..., slice(30, 38), slice(5, 12))] = 9
    image = rng.normal(0.2, 0.1, shape).astype(np.float32) + (labels > 0)
    spacing = (1.0,) * len(shape)
    whole = patches.annotate("a", "a", image, labels, spacing)
    found = patches.annotate("a", "a", image, labels, spacing, longest_px=30)
    assert (found.n, len(found.middle) - 1) == (2, len(found.of_part) - 1)
    assert len(found.of_part) > 5
    np.testing.assert_array_equal(found.scored(), whole.labels)
    np.testing.assert_array_equal(found.size, whole.size)
    for part in range(1, len(found.of_part)):
        inside = found.labels == part
        assert inside[tuple(found.middle[part].astype(int))]
        assert found.part_size[part] == inside.sum()
        assert found.depth[inside].max() == 255
    sampler = patches.Sampler([found], (16, 32, 32)[-len(shape) :], 2, PLAIN, seed=1)
    batch = sampler.batch(0)
    here = batch["labels"] > 0
    assert (batch["objects"][here] == torch.from_numpy(found.of_part)[batch["labels"][here]]).all()
    assert (batch["objects"][~here] == batch["labels"][~here]).all()
