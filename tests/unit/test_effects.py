import numpy as np
import pytest

from iaunet import effects


def by_pairs(values, others):
    return np.sign(np.subtract.outer(values, others)).mean()


def test_the_delta_is_that_of_all_pairs(rng):
    for _ in range(20):
        values, others = (rng.integers(0, 9, rng.integers(1, 30)).astype(float) for _ in "ab")
        assert effects.cliffs_delta(values, others) == pytest.approx(by_pairs(values, others))


def test_a_resample_has_the_delta_of_its_pairs(rng):
    values, others = rng.normal(size=7), rng.normal(size=9)
    weights = rng.multinomial(7, np.full(7, 1 / 7), 5), rng.multinomial(9, np.full(9, 1 / 9), 5)
    found = effects._deltas(values, others, *weights)
    for k in range(5):
        drawn = np.repeat(values, weights[0][k]), np.repeat(others, weights[1][k])
        assert found[k] == pytest.approx(by_pairs(*drawn))


def test_swapped_groups_have_the_opposite_delta(rng):
    values, others = rng.normal(size=12), rng.normal(1, 1, 15)
    assert effects.cliffs_delta(values, others) == -effects.cliffs_delta(others, values)


def test_the_interval_holds_the_true_delta_about_as_often_as_it_says(rng):
    # Of two normal distributions one standard deviation apart: 2 Phi(1 / sqrt 2) - 1.
    true, seen = 0.5205, 0
    for _ in range(150):
        low, high = effects.interval(rng.normal(1, 1, 25), rng.normal(0, 1, 25), rng)
        seen += low <= true <= high
    assert 0.88 < seen / 150 <= 1


def test_few_values_have_no_interval(rng):
    assert effects.interval(np.array([1.0, 2.0]), np.arange(9.0), rng) is None
    assert effects.interval(np.arange(3.0), np.arange(3.0), rng) is not None
