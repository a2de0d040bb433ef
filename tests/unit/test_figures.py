from iaunet import figures


def test_intervals_are_drawn_also_where_there_are_none():
    some = figures.Panel("a", "x", ["p", "q"], {"s": [(1, 0.5, 2), None]}, zero=True)
    none = figures.Panel("b", "x", [], {"s": []})
    undefined = figures.Panel("c", "x", ["p"], {"s": [(float("nan"),) * 3], "t": [None]})
    first, second = (figures.intervals([some, none, undefined]) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == second
