import numpy as np
import pytest

from iaunet import tuning, ways

TRAINING = {"vectors": "spatial", "unit_px": 4.0}


def test_the_search_finds_a_maximum_along_the_axes_and_keeps_the_first_of_equals():
    grid = {"a": (0, 1, 2, 3), "b": (0, 5, 9)}
    best, score = tuning.search(
        lambda s: -((s["a"] - 2) ** 2) - abs(s["b"] - 5), {"a": 0, "b": 0}, grid
    )
    assert (best, score) == ({"a": 2, "b": 5}, 0)
    best, _ = tuning.search(lambda s: 0.0, {"a": 3, "b": 9}, grid)
    assert best == {"a": 3, "b": 9}


@pytest.fixture
def cases():
    """Two images of separate squares, with the outputs of a perfect network."""
    found = []
    for first in (2, 5):
        labels = np.zeros((40, 44), np.int32)
        for k, (y, x) in enumerate([(first, 3), (first, 25), (22, 12)], start=1):
            labels[y : y + 9, x : x + 9] = k
        inside = labels > 0
        off = np.zeros((2, *labels.shape), np.int16)
        seed = np.zeros(labels.shape, np.uint16)
        for k in (1, 2, 3):
            where = np.argwhere(labels == k)
            middle = where.mean(0).astype(int)
            off[:, *where.T] = 16 * (middle - where).T
            seed[*where.T] = 30000 - 2000 * np.abs(where - middle).max(1)
        outputs = {
            "fg": np.where(inside, 250, 0).astype(np.uint8),
            "seed": seed,
            "off": off,
            "lsig": np.where(inside, 20, 0).astype(np.uint8)[None].repeat(2, 0),
            "id": np.zeros((16, 10, 11), np.int8),
        }
        found.append((outputs, labels))
    return found


@pytest.mark.parametrize("name", list(ways.WAYS))
def test_every_way_finds_separate_objects_of_a_perfect_network(name, cases):
    way = ways.WAYS[name](2, (4, 4), TRAINING)
    settings, score = ways.fitted(way, cases, identity=name == "identity")
    assert score == 1
    assert set(way.grid) <= set(settings)
    assert (settings.get("identity", 0) > 0) == (name == "identity")
    assert way.label(cases[0][0], settings).dtype.kind in "iu"
