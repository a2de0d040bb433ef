import numpy as np
import pytest

from iaunet import comparison
from iaunet.comparison import Sample


def estimate(sample, weights, minus=None):
    other = None if minus is None else comparison.scored(minus, weights)
    return comparison.estimate(comparison.scored(sample, weights), other)


def means(values):
    return Sample(values, np.ones_like(values))


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(comparison, "N_RESAMPLES", 400)
    covered = 0
    for trial in range(150):
        rng = np.random.default_rng(trial)
        easy = rng.normal(0.5, 0.2, (1, 40))  # images differ much more than rows do
        base = easy + rng.normal(0, 0.02, (3, 40))
        better = easy + 0.03 + rng.normal(0, 0.02, (3, 40))
        weights = comparison.resamples(3, 40, rng)
        found = estimate(means(better), weights, means(base))
        covered += found["low"] <= 0.03 <= found["high"]
        assert found["low"] > 0, "paired: the images' own differences cancel"
    assert 0.88 <= covered / 150 <= 1


def test_seeds_that_disagree_widen_the_interval(rng):
    image = rng.normal(0, 0.01, (1, 50))
    steady = means(np.repeat(image, 3, axis=0))
    moody = means(image + np.array([[-0.1], [0.0], [0.1]]))
    weights = comparison.resamples(3, 50, rng)
    narrow, wide = (estimate(one, weights) for one in (steady, moody))
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])
    assert (wide["lowest_seed"], wide["highest_seed"]) == pytest.approx(
        (wide["value"] - 0.1, wide["value"] + 0.1)
    )


def test_a_score_is_the_ratio_of_sums_over_images(rng):
    amount, out_of = rng.integers(0, 5, (2, 20)), rng.integers(5, 9, (2, 20))
    sample = Sample(amount.astype(float), out_of.astype(float))
    assert comparison.ratio(sample) == pytest.approx(amount.sum() / out_of.sum())
    weights = comparison.resamples(2, 20, rng)
    found = comparison.ratios(sample, weights)
    k = 7
    by_hand = [
        sum(
            weights.of_seeds[k, s] * weights.of_images[k, i] * part[s, i]
            for s in range(2)
            for i in range(20)
        )
        for part in (amount, out_of)
    ]
    assert found[k] == pytest.approx(by_hand[0] / by_hand[1])
    np.testing.assert_array_equal(weights.of_images.sum(1), 20)
    np.testing.assert_array_equal(weights.of_seeds.sum(1), 2)


def test_images_without_the_score_do_not_count(rng):
    values = rng.random((2, 10))
    out_of = np.ones((2, 10))
    values[:, 5:] = out_of[:, 5:] = 0
    weights = comparison.resamples(2, 10, rng)
    found = estimate(Sample(values, out_of), weights)
    assert found["value"] == pytest.approx(values[:, :5].mean())
    assert found["n_images"] == 5
    nowhere = estimate(Sample(np.zeros((2, 10)), np.zeros((2, 10))), weights)
    assert np.isnan(nowhere["value"])
    assert np.isnan(nowhere["low"])


def test_the_same_numbers_give_the_same_interval(rng):
    sample = means(rng.random((3, 12)))
    found = [
        estimate(sample, comparison.resamples(3, 12, np.random.default_rng(0))) for _ in range(2)
    ]
    assert found[0] == found[1]


def line(part, measure, value, low, row="7", minus="4", images="all"):
    return {"row": row, "minus": minus, "images": images, "part": part} | {
        "measure": measure,
        "value": value,
        "low": low,
        "high": value + 1,
    }


WHOLE = line("all", "map", -0.003, -0.1)
TOUCHING = line("touching", "map", 0.01, 0.001)
LINKS = line("links", "gain 0-4", 0.05, -0.1, minus="")


@pytest.mark.parametrize(
    ("rows", "keep"),
    [
        pytest.param([WHOLE, TOUCHING], True, id="touching improves, all is not harmed"),
        pytest.param([WHOLE, line("look-alike", "map", 0.01, 0.001)], True, id="look-alike"),
        pytest.param([WHOLE, line("touching", "map", 0.1, 0.0)], False, id="interval holds 0"),
        pytest.param([line("all", "map", -0.0031, -1), TOUCHING], False, id="all is harmed"),
        pytest.param([WHOLE, line("touching", "ap50", 0.1, 0.1)], False, id="other measure"),
        pytest.param([TOUCHING], False, id="all not measured"),
        pytest.param([WHOLE, LINKS], True, id="links improve by 5 points"),
        pytest.param([line("links", "gain 0-4", 0.049, 0.01, minus="")], False, id="by less"),
        pytest.param([line("links", "gain 0-4", 0.3, 0.1, minus="4")], False, id="against row 4"),
        pytest.param(
            [line("all", "map", 0, 0, images="nuclei"), {**TOUCHING, "images": "nuclei"}],
            False,
            id="one kind of images only",
        ),
        pytest.param([WHOLE, {**TOUCHING, "row": "6"}], False, id="another row"),
        pytest.param([], False, id="nothing"),
    ],
)
def test_the_criterion_is_the_registered_one(rows, keep):
    assert comparison.verdict(rows, "7", "4").keep == keep
