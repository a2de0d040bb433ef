"""Scores agree with stardist and with the definitions spelt out as loops."""

import json

import numpy as np
import pytest

from iaunet import metrics

THRESHOLDS = np.round(np.arange(0.1, 0.951, 0.05), 2)


def blobs(rng, shape, n_objects, radius):
    """Draw overlapping balls; later ones cover earlier ones."""
    labels = np.zeros(shape, dtype=np.int64)
    grid = np.indices(shape)
    for label in range(1, n_objects + 1):
        centre = [rng.integers(0, length) for length in shape]
        distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
        labels[distance < rng.uniform(0.5, 1.5) * radius**2] = label
    return labels


def disturbed(rng, labels):
    """Shift labels, split some objects and merge others."""
    moved = np.roll(labels, rng.integers(-2, 3, size=labels.ndim), axis=range(labels.ndim))
    ids = np.unique(moved[moved > 0])
    for one, other in rng.permutation(ids)[: len(ids) // 4 * 2].reshape(-1, 2):
        moved[moved == one] = other
    stripes = np.indices(labels.shape)[-1] % 5 == 0
    return np.where(stripes & (moved % 4 == 1), moved + 1000, moved)


CASES = [
    pytest.param((64, 64), 30, 6, id="2d crowded"),
    pytest.param((12, 24, 24), 15, 5, id="3d"),
    pytest.param((40, 40), 1, 9, id="one object"),
    pytest.param((16, 16), 60, 1, id="single pixels"),
]


@pytest.mark.parametrize(("shape", "n_objects", "radius"), CASES)
def test_counts_and_ratios_equal_stardist(rng, shape, n_objects, radius):
    matching = pytest.importorskip("stardist.matching").matching
    for _ in range(5):
        true = blobs(rng, shape, n_objects, radius)
        predicted = disturbed(rng, true)
        found = metrics.overlap(true, predicted)
        tp, fp, fn = metrics.match_counts(found, THRESHOLDS)
        for k, oracle in enumerate(matching(true, predicted, thresh=THRESHOLDS.tolist())):
            assert (tp[k], fp[k], fn[k]) == (oracle.tp, oracle.fp, oracle.fn), THRESHOLDS[k]
        scores = metrics.accuracy(found)
        oracle = matching(true, predicted, thresh=0.5)
        assert scores["ap50"] == pytest.approx(oracle.accuracy)
        assert scores["f1_50"] == pytest.approx(oracle.f1)
        assert scores["precision_50"] == pytest.approx(oracle.precision)
        assert scores["recall_50"] == pytest.approx(oracle.recall)
        assert scores["pq"] == pytest.approx(oracle.panoptic_quality, rel=1e-5)


def test_noise_labels_equal_stardist_where_the_assignment_is_ambiguous(rng):
    matching = pytest.importorskip("stardist.matching").matching
    for _ in range(20):
        true, predicted = rng.integers(0, 12, size=(2, 6, 6))
        tp, _, _ = metrics.match_counts(metrics.overlap(true, predicted), THRESHOLDS)
        oracle = matching(true, predicted, thresh=THRESHOLDS.tolist())
        np.testing.assert_array_equal(tp, [one.tp for one in oracle])


def test_an_iou_equal_to_the_threshold_matches():
    true = np.array([1] * 5 + [2] * 2)
    predicted = np.array([1] * 3 + [0] * 2 + [2, 3])
    tp, fp, fn = metrics.match_counts(metrics.overlap(true, predicted), [0.5, 0.6, 0.61])
    assert (tp.tolist(), fp.tolist(), fn.tolist()) == ([2, 1, 0], [1, 2, 3], [0, 1, 2])


def aji_by_loops(true, predicted):
    shared = union = 0
    used = set()
    for i in np.unique(true[true > 0]):
        best = (0, 0, 0)
        for j in np.unique(predicted[(true == i) & (predicted > 0)]):
            both = np.sum((true == i) & (predicted == j))
            either = np.sum((true == i) | (predicted == j))
            best = max(best, (both / either, both, -int(j)))
        if best[0] == 0:
            union += np.sum(true == i)
            continue
        used.add(-best[2])
        shared += best[1]
        union += np.sum((true == i) | (predicted == -best[2]))
    return shared / (union + np.sum((predicted > 0) & ~np.isin(predicted, list(used))))


def split_rate_by_loops(true, predicted):
    n_split = 0
    ids = np.unique(true[true > 0])
    for i in ids:
        pieces = 0
        for j in np.unique(predicted[(true == i) & (predicted > 0)]):
            both = np.sum((true == i) & (predicted == j))
            pieces += both >= 0.5 * np.sum(predicted == j) and both >= 0.1 * np.sum(true == i)
        n_split += pieces >= 2
    return n_split / len(ids)


def test_aji_split_and_merge_rates_equal_loops_over_objects(rng):
    for _ in range(5):
        true = blobs(rng, (40, 40), 15, 6)
        predicted = disturbed(rng, true)
        scores = metrics.accuracy(metrics.overlap(true, predicted))
        assert scores["aji"] == pytest.approx(aji_by_loops(true, predicted))
        assert scores["split_rate"] == pytest.approx(split_rate_by_loops(true, predicted))
        assert scores["merge_rate"] == pytest.approx(split_rate_by_loops(predicted, true))


def test_a_cut_object_is_a_split_and_a_joined_pair_a_merge():
    whole = np.array([1, 1, 1, 1, 0, 2, 2])
    pieces = np.array([1, 1, 3, 3, 0, 2, 2])
    assert metrics.accuracy(metrics.overlap(whole, pieces))["split_rate"] == 0.5
    assert metrics.accuracy(metrics.overlap(whole, pieces))["merge_rate"] == 0
    assert metrics.accuracy(metrics.overlap(pieces, whole))["merge_rate"] == 0.5


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64", ">u4"])
def test_relabelling_and_dtype_do_not_change_a_score(rng, dtype):
    true = blobs(rng, (48, 48), 20, 6)
    predicted = disturbed(rng, true)
    _, true = np.unique(true, return_inverse=True)
    _, predicted = np.unique(predicted, return_inverse=True)
    expected = metrics.accuracy(metrics.overlap(true, predicted))
    names = np.concatenate([[0], rng.permutation(np.arange(1, 127))]).astype(dtype)
    if dtype == "uint64":
        names[1:] += np.uint64(2**63)
    again = metrics.accuracy(metrics.overlap(names[true], names[predicted]))
    assert again == expected


def test_ids_that_differ_above_2_to_32_are_different():
    true = np.array([2**40 + 1, 2**40 + 1, 1, 1], dtype=np.uint64)
    found = metrics.overlap(true, np.ones(4, dtype=np.uint8))
    assert found.true_ids.tolist() == [1, 2**40 + 1]
    assert found.pairs.tolist() == [[1, 1], [2**40 + 1, 1]]


def test_blocks_add_up_to_the_image(rng):
    true = blobs(rng, (50, 61), 40, 6)
    predicted = disturbed(rng, true)
    whole = metrics.overlap(true, predicted)
    blocks = [
        metrics.overlap(true[y : y + 17, x : x + 13], predicted[y : y + 17, x : x + 13])
        for y in range(0, 50, 17)
        for x in range(0, 61, 13)
    ]
    merged = metrics.merge_overlaps(blocks)
    for name in vars(whole):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name), err_msg=name)
        assert getattr(merged, name).dtype == getattr(whole, name).dtype


def test_more_pairs_than_the_first_table_holds_are_all_counted(rng):
    true = np.arange(1, 200_001).reshape(400, 500)
    found = metrics.overlap(true, true[::-1])
    assert len(found.shared) == 200_000
    assert found.shared.sum() == 200_000


def test_memory_order_of_the_arrays_does_not_matter(rng):
    true = blobs(rng, (30, 41), 20, 5)
    predicted = disturbed(rng, true)
    straight = metrics.overlap(true, predicted)
    odd = metrics.overlap(np.asfortranarray(true), predicted[:, ::-1].copy()[:, ::-1])
    np.testing.assert_array_equal(odd.pairs, straight.pairs)
    np.testing.assert_array_equal(odd.shared, straight.shared)


EMPTY = np.zeros((3, 4), dtype=np.uint16)
FULL = np.ones((3, 4), dtype=np.uint16)


def test_nothing_true_and_nothing_predicted_has_no_score():
    for empty in (EMPTY, np.zeros((0, 5), dtype=np.int32)):
        scores = metrics.accuracy(metrics.overlap(empty, empty))
        assert {scores[key] for key in ("ap50", "ap_mean", "f1_50", "pq", "aji")} == {None}
        assert (scores["tp_50"], scores["fp_50"], scores["fn_50"], scores["n_true"]) == (0, 0, 0, 0)
        assert scores["split_rate"] is None
        json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize(
    ("true", "predicted", "counts"), [(FULL, EMPTY, (0, 0, 1)), (EMPTY, FULL, (0, 1, 0))]
)
def test_all_missed_or_all_false_scores_zero(true, predicted, counts):
    scores = metrics.accuracy(metrics.overlap(true, predicted))
    keys = ("ap50", "ap75", "ap_mean", "f1_50", "precision_50", "recall_50", "pq", "aji")
    assert {scores[key] for key in keys} == {0.0}
    assert (scores["tp_50"], scores["fp_50"], scores["fn_50"]) == counts


def test_a_perfect_prediction_scores_one(rng):
    true = blobs(rng, (30, 30), 9, 5)
    scores = metrics.accuracy(metrics.overlap(true, true * 7))
    assert scores["ap_mean"] == scores["pq"] == scores["aji"] == scores["f1_50"] == 1
    assert scores["split_rate"] == scores["merge_rate"] == 0


def test_pooled_accuracy_is_that_of_the_summed_counts():
    assert metrics.pooled([(1, 0, 0), (1, 1, 1)]) == 0.5
    assert metrics.pooled([(np.array([1, 0]), np.array([0, 0]), np.array([0, 0]))]) == [1.0, None]
    assert metrics.pooled([]) is None


def test_labels_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.overlap(EMPTY, EMPTY[:2])
    with pytest.raises(ValueError, match="true labels must be integers, got float64"):
        metrics.overlap(EMPTY.astype(float), EMPTY)
    with pytest.raises(ValueError, match="predicted labels must not be negative, got -1"):
        metrics.overlap(EMPTY, EMPTY.astype(int) - 1)
    with pytest.raises(ValueError, match="above 0"):
        metrics.match_counts(metrics.overlap(FULL, FULL), [0])


def test_predictions_are_ignored_where_nothing_is_annotated_and_cut_at_its_border(rng):
    true, known = blobs(rng, (60, 70), 20, 7), np.zeros((60, 70), bool)
    known[:, :40] = True
    predicted = disturbed(rng, true)
    cut, found = metrics.where_annotated(np.where(known, true, -1), predicted)
    np.testing.assert_array_equal(cut, np.where(known, true, 0))
    for label in np.unique(predicted[predicted > 0]):
        inside = (predicted == label) & known
        kept = 2 * inside.sum() >= (predicted == label).sum()
        np.testing.assert_array_equal(found == label, inside & kept)
    everywhere = metrics.where_annotated(true, predicted)
    assert everywhere[0] is true
    assert everywhere[1] is predicted
