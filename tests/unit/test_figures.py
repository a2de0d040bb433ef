import numpy as np
import pytest

from iaunet import figures


def drawn(values, **more):
    return figures.histograms([figures.Distribution("Size", "area, px", np.array(values), **more)])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="no objects"),
        pytest.param([5.0], id="one object"),
        pytest.param([3.0] * 100, id="all alike"),
        pytest.param([np.nan, np.inf, 1.0], id="not all finite"),
        pytest.param(np.geomspace(1, 1e6, 5000), id="six decades"),
        pytest.param([-4.0, 0.0, 2.5e300], id="negative and huge"),
    ],
)
def test_any_values_can_be_drawn(values):
    assert drawn(values).lstrip().startswith(b"<?xml")


def test_the_same_values_give_the_same_bytes(rng):
    values = rng.lognormal(5, 1, 1000)
    assert drawn(values) == drawn(values)


def test_a_figure_of_many_objects_is_small(rng):
    assert len(drawn(rng.lognormal(5, 2, 200_000))) < 60_000


def test_accuracy_has_its_own_panel():
    without = drawn([1.0, 2.0])
    with_accuracy = figures.histograms(
        [figures.Distribution("Size", "area", np.array([1.0, 2.0]))], ap=[0.9, 0.5, None]
    )
    assert len(with_accuracy) > len(without)


def test_a_title_cannot_break_the_figure():
    assert b"<script" not in figures.histograms(
        [figures.Distribution("<script>", "$x_{", np.array([1.0]))]
    )


def test_intervals_are_drawn_also_where_there_are_none():
    some = figures.Panel("a", "x", ["p", "q"], {"s": [(1, 0.5, 2), None]}, zero=True)
    none = figures.Panel("b", "x", [], {"s": []})
    undefined = figures.Panel("c", "x", ["p"], {"s": [(float("nan"),) * 3], "t": [None]})
    first, second = (figures.intervals([some, none, undefined]) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == second
