import numpy as np
import pytest

from iaunet import baselines


def outputs(labels, centres):
    """Return the outputs of a perfect network for discs of radius 6 around `centres`."""
    grids = np.indices(labels.shape)
    far = [
        np.sqrt(sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True))) for centre in centres
    ]
    depth = np.clip(1 - np.min(far, axis=0) / 6, 0, 1)
    seed = np.rint(32767 * depth).astype(np.uint16)
    return {"fg": np.where(labels > 0, 250, 5).astype(np.uint8), "seed": seed}


@pytest.fixture(params=[(20, 40), (13, 20, 40)], ids=["2d", "3d"])
def two(request):
    """Two touching discs or balls."""
    shape = request.param
    middle = [length // 2 for length in shape[:-1]]
    centres = [(*middle, 12), (*middle, 22)]
    grids = np.indices(shape)
    far = np.stack([((grids.T - c) ** 2).sum(-1).T for c in centres])
    labels = np.where(far.min(0) < 36, far.argmin(0) + 1, 0)
    return labels, outputs(labels, centres)


def test_components_are_those_of_the_mask(two):
    labels, given = two
    found = baselines.components(given, fg=0.5, min_size=1)
    np.testing.assert_array_equal(found > 0, labels > 0)
    assert found.max() == 1


def test_the_watershed_parts_what_touches(two):
    labels, given = two
    found = baselines.watershed(given, seed=0.3, fg=0.5, smooth=1, seed_window=2, min_size=1)
    assert found.max() == 2
    same = (found == labels).mean()
    assert max(same, (np.where(found > 0, 3 - found, 0) == labels).mean()) > 0.98


def test_small_objects_are_left_out():
    labels = np.array([[1, 1, 0, 2]])
    np.testing.assert_array_equal(baselines.without_small(labels, 2), [[1, 1, 0, 0]])
    assert not baselines.without_small(labels, 3).any()


def test_nothing_gives_nothing():
    given = {"fg": np.zeros((9, 9), np.uint8), "seed": np.zeros((9, 9), np.uint16)}
    assert not baselines.components(given, fg=0.5, min_size=1).any()
    settings = {"seed": 0.3, "fg": 0.5, "smooth": 1, "seed_window": 2, "min_size": 1}
    assert not baselines.watershed(given, **settings).any()
