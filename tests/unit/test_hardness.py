import numpy as np
import pytest

from iaunet import hardness, metrics

CASES = [pytest.param((60, 70), id="2d"), pytest.param((8, 30, 34), id="3d")]


def blobs(rng, shape, n=25, radius=6):
    """Draw overlapping discs or balls, labels 1 to n without gaps."""
    labels = np.zeros(shape, np.int64)
    grids = np.indices(shape)
    for label in range(1, n + 1):
        centre = rng.uniform(0, shape).reshape(-1, *[1] * len(shape))
        labels[((grids - centre) ** 2).sum(0) < rng.uniform(0.5, 1) * radius**2] = label
    kept = np.unique(labels)
    return np.searchsorted(kept, labels)


def disturbed(rng, true):
    """Return a prediction with shifted, merged, missing and invented objects."""
    found = np.roll(true, 1, axis=-1) + (true > 0) * 100
    found = np.where(found == 100, 0, found)
    some = rng.permutation(true.max())[:4] + 101
    found[found == some[0]] = some[1]
    found[found == some[2]] = 0
    found[..., :4, :4] = 999
    return found


@pytest.mark.parametrize("shape", CASES)
def test_a_subset_of_all_objects_has_the_scores_of_the_image(shape, rng):
    true = blobs(rng, shape)
    predicted = disturbed(rng, true)
    overlap = metrics.overlap(true, predicted)
    owner = hardness.owners(true, predicted, overlap)
    found = hardness.subset_scores(overlap, owner, np.arange(true.max() + 1) > 0)
    expected = metrics.accuracy(overlap)
    for ours, theirs in (("ap50", "ap50"), ("ap75", "ap75"), ("pq", "pq"), ("n_true", "n_true")):
        assert found[ours] == pytest.approx(expected[theirs])
    assert found["map"] == pytest.approx(np.mean(expected["ap"][:9]))
    assert found["splits"] == pytest.approx(expected["split_rate"] * len(overlap.true_ids))
    assert found["merges"] == pytest.approx(expected["merge_rate"] * len(overlap.predicted_ids))


@pytest.mark.parametrize("shape", CASES)
def test_counts_of_a_partition_add_up(shape, rng):
    true = blobs(rng, shape)
    predicted = disturbed(rng, true)
    overlap = metrics.overlap(true, predicted)
    owner = hardness.owners(true, predicted, overlap)
    assert (owner > 0).all()
    part = rng.random(true.max() + 1) < 0.5
    part[0] = False
    rest = ~part
    rest[0] = False
    whole, *halves = (
        hardness.subset_scores(overlap, owner, subset) for subset in (part | rest, part, rest)
    )
    for name in ("n_true", "merges", "splits"):
        assert whole[name] == sum(half[name] for half in halves)
    mine = [int(subset[owner].sum()) for subset in (part, rest)]
    assert sum(mine) == len(overlap.predicted_ids)


def test_relabelling_changes_nothing(rng):
    true = blobs(rng, (60, 70))
    predicted = disturbed(rng, true)
    n = true.max()
    other = np.concatenate([[0], rng.permutation(n) + 1])
    names = np.concatenate([[0], rng.permutation(1000) + 1])
    centre, morphology = rng.uniform(0, 70, (n + 1, 2)), rng.normal(size=(n + 1, 3))
    found = []
    for labels, instances, order in (
        (true, predicted, np.arange(n + 1)),
        (other[true], names[predicted], np.argsort(other)),
    ):
        overlap = metrics.overlap(labels, instances)
        owner = hardness.owners(labels, instances, overlap)
        subset = hardness.touching(labels, n)
        likeness = hardness.neighbour_likeness(centre[order], morphology[order])
        alike = hardness.look_alike([likeness])[0]
        found += [
            [hardness.subset_scores(overlap, owner, part) for part in (subset, alike)],
        ]
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other)


def test_the_contact_is_the_share_of_the_outline_that_two_objects_have_in_common():
    labels = np.zeros((8, 8), int)
    labels[2:4, 2:4], labels[2:4, 4:6], labels[6, 6] = 1, 2, 3
    np.testing.assert_allclose(hardness.contact_shares(labels, 3), [0, 2 / 8, 2 / 8, 0])
    np.testing.assert_array_equal(hardness.touching(labels, 3), [False, True, True, False])


def test_the_border_of_the_image_is_no_outline():
    labels = np.array([[1, 1, 2], [1, 1, 2]])
    np.testing.assert_allclose(hardness.contact_shares(labels, 2), [0, 1, 1])


def test_a_stray_prediction_belongs_to_the_nearest_object():
    true = np.array([[1, 0, 0, 0, 0, 0, 2, 0]])
    predicted = np.array([[1, 0, 0, 0, 5, 5, 0, 0]])
    overlap = metrics.overlap(true, predicted)
    assert hardness.owners(true, predicted, overlap).tolist() == [1, 2]
    one = hardness.subset_scores(overlap, np.array([1, 2]), np.array([False, True, False]))
    assert one["ap50"] == 1
    other = hardness.subset_scores(overlap, np.array([1, 2]), np.array([False, False, True]))
    assert other["ap50"] == 0


def test_look_alikes_differ_from_their_neighbour_less_than_the_median():
    centre = np.array([[0, 0], [0, 0], [0, 1], [9, 9], [9, 8]])
    morphology = np.array([[7.0], [0], [0.1], [5], [9]])
    likeness = hardness.neighbour_likeness(centre, morphology)
    np.testing.assert_allclose(likeness, [np.inf, 0.1, 0.1, 4, 4])
    alone = hardness.neighbour_likeness(centre[:2], morphology[:2])
    first, second = hardness.look_alike([likeness, alone])
    np.testing.assert_array_equal(first, [False, True, True, False, False])
    assert not second.any()


@pytest.mark.parametrize("empty", ["true", "predicted", "both"])
def test_empty_images_have_defined_values(empty):
    full = np.array([[1, 1, 0, 2]])
    true = np.zeros_like(full) if empty in ("true", "both") else full
    predicted = np.zeros_like(full) if empty in ("predicted", "both") else full
    overlap = metrics.overlap(true, predicted)
    owner = hardness.owners(true, predicted, overlap)
    found = hardness.subset_scores(overlap, owner, np.array([False, True, True]))
    assert found is None if true.max() == 0 else found["map"] == 0
    assert hardness.look_alike([]) == []
