"""True objects are split into compact parts."""

import numpy as np
import pytest
from scipy import ndimage

from iaunet import splitting


def long_and_short(ndim):
    """Return a bent tube, a ball and a box over the edge, labels 1 to 3; -1 in a corner."""
    shape = (90, 120) if ndim == 2 else (24, 90, 120)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)
    labels = np.zeros(shape, np.int32)
    for x in np.linspace(5, 115, 200):
        centre = np.array([12, 30 + 20 * np.sin(x / 15), x])[-ndim:]
        labels[((grid - centre) ** 2).sum(-1) < 16] = 1
    labels[((grid - np.array([12, 70, 60])[-ndim:]) ** 2).sum(-1) < 64] = 2
    labels[(..., slice(80, 90), slice(0, 100))] = 3
    labels[(..., slice(0, 5), slice(100, 120))] = -1
    return labels


@pytest.mark.parametrize("ndim", [2, 3])
def test_parts_partition_the_objects(ndim):
    labels = long_and_short(ndim)
    parts, of_part = splitting.split(labels, 3, 30, (1.0,) * ndim)
    assert sorted(np.unique(parts[parts > 0])) == list(range(1, len(of_part)))
    np.testing.assert_array_equal(np.where(parts > 0, of_part[parts], parts), labels)


@pytest.mark.parametrize("ndim", [2, 3])
def test_parts_are_connected_and_about_as_long_as_asked_for(ndim):
    labels = long_and_short(ndim)
    parts, of_part = splitting.split(labels, 3, 30, (1.0,) * ndim)
    assert (of_part == 1).sum() >= 5
    assert (of_part == 2).sum() == 1
    for number, box in enumerate(ndimage.find_objects(np.maximum(parts, 0)), start=1):
        assert ndimage.label(parts[box] == number)[1] == 1
        if of_part[number] == 1:
            assert max(side.stop - side.start for side in box) <= 40


def test_spacing_counts():
    labels = np.ones((6, 40), np.int32)
    assert len(splitting.split(labels, 1, 50, (1.0, 1.0))[1]) == 2
    assert len(splitting.split(labels, 1, 50, (10.0, 1.0))[1]) > 2


def test_every_piece_of_an_object_is_part_of_something():
    labels = np.zeros((10, 60), np.int32)
    labels[2:8, :50] = 1
    labels[4, 55] = 1
    parts, of_part = splitting.split(labels, 1, 20, (1.0, 1.0))
    assert ((parts > 0) == (labels > 0)).all()
    assert set(of_part[1:]) == {1}
