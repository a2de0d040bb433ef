import numpy as np
import pytest

from iaunet import linking


def scene(rng, shape=(48, 48), size=14):
    """Return labels of a grid of squares and a morphology."""
    labels = np.zeros(shape, int)
    label = 0
    for y in range(1, shape[0] - size, size + 2):
        for x in range(1, shape[1] - size, size + 2):
            label += 1
            labels[y : y + size, x : x + size] = label
    return labels, rng.normal(size=(label + 1, 3))


def pairs_of(labels, morphology, identity, overlap_px, axis=1, reach_px=40.0):
    boxes = linking.tiles(labels.shape, axis, overlap_px)
    start, stop = boxes[1][axis].start, boxes[0][axis].stop
    bands = ((min(start, stop - 1), stop), (start, max(stop, start + 1)))
    parts = [
        linking.fragments(
            labels[box], identity[(slice(None), *box)], (1, 1), box=box, axis=axis, band=band
        )
        for box, band in zip(boxes, bands, strict=True)
    ]
    shared = list(boxes[0])
    shared[axis] = slice(start, max(start, stop))
    band = labels[tuple(shared)]
    return linking.candidate_pairs(*parts, (band, band), morphology, reach_px)


def perfect(labels, channels=24):
    """Return an identity map of orthogonal vectors."""
    return np.moveaxis(np.eye(channels, dtype=float)[labels % channels], -1, 0)


@pytest.mark.parametrize("overlap_px", [0, 2, 4, 8, -2, -4])
@pytest.mark.parametrize("axis", [0, 1])
def test_perfect_identities_are_linked_without_a_mistake(overlap_px, axis, rng):
    labels, morphology = scene(rng)
    pairs = pairs_of(labels, morphology, perfect(labels), overlap_px, axis)
    assert pairs.n_true == 3
    scorer = linking.calibrated([pairs], ("cosine",))
    found = linking.link_counts(pairs, {"identity": scorer})
    assert found["identity"] == (2 * pairs.n_true, 2 * pairs.n_true)


def test_iou_links_only_where_tiles_overlap(rng):
    labels, morphology = scene(rng)
    for overlap_px, hits in ((4, True), (0, False), (-2, False)):
        pairs = pairs_of(labels, morphology, perfect(labels), overlap_px)
        found, out_of = linking.link_counts(pairs, {})["iou"]
        assert out_of >= pairs.n_true > 0
        assert (found == out_of) == hits
        assert hits or found == 0


def test_equal_identities_tell_nothing(rng):
    labels, morphology = scene(rng)
    same = np.ones((2, *labels.shape))
    pairs = pairs_of(labels, morphology, same, 0)
    cosine = pairs.evidence[:, linking.EVIDENCE.index("cosine")]
    np.testing.assert_allclose(cosine, 1)
    assert linking.auc(cosine, pairs.same) == 0.5
    scorer = linking.calibrated([pairs], ("cosine",))
    assert np.ptp(scorer.score(pairs.evidence)) == 0


def test_tiles_overlap_abut_or_leave_a_gap():
    for overlap_px in linking.OVERLAPS_PX:
        one, other = linking.tiles((64, 80), 0, overlap_px)
        assert one[0].stop - other[0].start == overlap_px
        assert (one[0].start, other[0].stop) == (0, 64)
        assert one[1] == other[1] == slice(0, 80)
    with pytest.raises(ValueError, match="no two tiles"):
        linking.tiles((6, 6), 0, 32)


def test_fragments_are_what_a_tile_shows_of_its_border_objects():
    labels = np.zeros((12, 20), int)
    labels[1:6, 2:14], labels[7:11, 1:5], labels[8:10, 9:10] = 1, 2, 3
    identity = np.stack([np.full((6, 5), 3.0), np.full((6, 5), 4.0)])
    box = (slice(0, 12), slice(0, 10))
    found = linking.fragments(labels[box], identity, (2, 2), box=box, axis=1, band=(9, 10))
    assert found.label.tolist() == [1]  # 2 is far from the border, 3 is too small
    assert found.size.tolist() == [40]
    assert found.section.tolist() == [5]
    np.testing.assert_allclose(found.centre, [[3, 5.5]])
    np.testing.assert_allclose(found.vector, [[0.6, 0.8]])


@pytest.mark.parametrize("n_values", [1, 4, 1000])
def test_the_area_under_the_curve_is_how_often_a_positive_wins(n_values, rng):
    score, positive = rng.integers(n_values, size=60), rng.random(60) < 0.4
    wins = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert linking.auc(score, positive) == pytest.approx(np.mean(wins))


def test_the_area_is_not_defined_without_both_kinds():
    assert np.isnan(linking.auc(np.zeros(3), np.ones(3, bool)))
    assert np.isnan(linking.auc(np.zeros(0), np.zeros(0, bool)))


def test_logistic_regression_finds_the_weights_that_made_the_data(rng):
    evidence = rng.normal(size=(20000, 4)) * [1, 2, 0.5, 1]
    odds = 0.5 + evidence @ np.array([0, -1.0, 2.0, 0.7])
    same = rng.random(20000) < 1 / (1 + np.exp(-odds))
    nothing = np.zeros(20000, int)
    pairs = linking.Pairs(nothing, nothing, evidence, same, np.zeros(20000), 0)
    scorer = linking.calibrated([pairs], ("distance", "section", "cosine"))
    assert np.abs(scorer.score(evidence) - odds).mean() < 0.1


def test_one_fragment_has_one_link_and_unlikely_ones_none():
    first, second = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    pairs = linking.Pairs(first, second, np.zeros((4, 4)), first == second, np.zeros(4), 2)
    # A greedy choice would take the first pair and leave the last, which is unlikely.
    assert linking.links(pairs, np.array([3.0, 2.5, 2.5, -9.0])).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert linking.links(pairs, np.array([3.0, -1, -1, -9])).tolist() == [True, False, False, False]


def test_without_fragments_there_is_nothing_to_link(rng):
    labels, morphology = np.zeros((30, 30), int), np.zeros((1, 3))
    pairs = pairs_of(labels, morphology, np.zeros((2, 30, 30)), 0)
    scorer = linking.calibrated([pairs], linking.EVIDENCE)
    assert linking.link_counts(pairs, {"everything": scorer}) == {
        "everything": (0, 0),
        "iou": (0, 0),
    }
    assert linking.calibrated([], linking.EVIDENCE).score(np.zeros((0, 4))).shape == (0,)
