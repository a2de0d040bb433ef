import numpy as np
import pytest

from iaunet import grid, regions

EVERYTHING = (slice(None), slice(None))


def wrong(true, predicted, inner=EVERYTHING):
    return regions.mistakes(np.array(true), np.array(predicted), inner)


@pytest.mark.parametrize("shape", [(1, 1), (30, 500), (5, 40, 40)])
def test_a_window_lies_in_the_image(shape, rng):
    for _ in range(50):
        centre = rng.uniform(-20, 520, len(shape))
        box = regions.window(centre, [32] * len(shape), shape)
        expected = tuple(min(32, length) for length in shape)
        assert grid.box_shape(box) == expected
        assert all(0 <= side.start < side.stop <= n for side, n in zip(box, shape, strict=True))


def test_a_ball_has_its_diameter_back():
    size = np.pi / 6 * 20**3 / 2
    diameter = regions.equivalent_diameter(size, (2.0, 1.0, 1.0))
    assert diameter == pytest.approx((10, 20, 20))


def test_the_crowded_object_is_in_the_crowd(rng):
    sparse = np.stack(np.meshgrid(*[np.arange(0, 1000, 100)] * 2), -1).reshape(-1, 2)
    crowd = 550 + rng.uniform(-20, 20, (30, 2))
    centres = np.concatenate([sparse, crowd])
    typical, crowded = regions.typical_and_crowded(
        centres, np.ones(len(centres)), (1.0, 1.0), radius=50
    )
    assert crowded >= len(sparse)
    assert typical < len(sparse)


def test_one_object_is_typical_and_crowded():
    assert regions.typical_and_crowded(np.zeros((1, 3)), np.ones(1), (1, 1, 1), 5) == (0, 0)


def test_equal_labellings_have_no_mistakes(rng):
    labels = rng.integers(0, 5, (20, 20))
    found = wrong(labels, (labels > 0) * (labels.astype(np.uint64) + 2**40))
    assert found.count == 0
    assert not len(found.merged)
    assert not len(found.split)


def test_missed_false_merged_and_split_are_told_apart():
    true = [[1, 1, 0, 2, 2, 3, 3, 0, 0, 4, 4, 4, 4]]
    predicted = [[0, 0, 0, 9, 9, 9, 9, 0, 7, 5, 5, 6, 6]]
    found = wrong(true, predicted)
    # IoU of exactly one half counts as found: 9 is 2, and 5 is 4.
    assert found.missed.tolist() == [1]
    assert found.false.tolist() == [7]
    assert found.merged.tolist() == [9]
    assert found.split.tolist() == [4]


def test_objects_that_a_window_cuts_are_not_counted():
    true = np.zeros((10, 30), int)
    true[2:8, 8:20] = 1
    found = wrong(true, np.zeros_like(true), (slice(0, 10), slice(0, 10)))
    assert found.count == 0


@pytest.mark.parametrize("empty", [np.zeros((4, 4), int), np.zeros((0, 4), int)])
def test_nothing_has_no_mistakes(empty):
    assert wrong(empty, empty).count == 0


def test_candidates_cover_a_small_image():
    seen = np.zeros((70, 130), bool)
    boxes, total = regions.candidates(seen.shape, (32, 32), most=1000)
    for box in boxes:
        seen[box] = True
    assert seen.all()
    assert len(boxes) == total


def test_candidates_of_a_large_image_are_few_and_spread():
    boxes, total = regions.candidates((10**6, 10**6), (100, 100), most=36)
    assert len(boxes) == 36
    assert total == 10**8
    assert boxes[-1][0].stop == 10**6
