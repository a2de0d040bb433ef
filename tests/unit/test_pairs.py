"""Pairs of labels are counted as loops over voxels count them."""

from collections import Counter

import numpy as np
import pytest

from iaunet import labels, pairs


@pytest.mark.parametrize("shape", [(9,), (7, 9), (4, 5, 6)])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
def test_counts_equal_a_loop_over_voxels(rng, shape, dtype):
    one, other = (rng.integers(0, 4, size=shape).astype(dtype) for _ in range(2))
    if dtype == "uint64":
        one[one > 0] += np.uint64(2**63)
    inner = tuple(slice(1, length - 1) for length in shape)
    keys, counts = pairs.count(one, other, inner)
    for values, found in ((slice(None), counts[:, 0]), (inner, counts[:, 1])):
        expected = Counter(
            zip(one[values].ravel().tolist(), other[values].ravel().tolist(), strict=True)
        )
        expected.pop((0, 0), None)
        some = found > 0
        assert (
            dict(zip(map(tuple, keys[some].tolist()), found[some].tolist(), strict=True))
            == expected
        )


def test_more_pairs_than_the_first_table_holds_are_all_counted():
    one = np.arange(1, 5001, dtype=np.uint32)
    keys, counts = pairs.count(one, one[::-1])
    assert len(keys) == 5000
    assert (counts == 1).all()


def test_arrays_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        pairs.count(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


@pytest.mark.parametrize("shape", [(7, 9), (4, 5, 6)])
def test_touching_labels_are_those_of_neighbouring_voxels(rng, shape):
    array = rng.integers(0, 30, size=shape).astype(np.uint16)
    expected = set()
    for axis in range(array.ndim):
        along = np.moveaxis(array, axis, 0)
        sides = zip(along[1:].ravel().tolist(), along[:-1].ravel().tolist(), strict=True)
        expected |= {(min(pair), max(pair)) for pair in sides if pair[0] != pair[1] and min(pair)}
    assert set(map(tuple, pairs.touching(array).tolist())) == expected


@pytest.mark.parametrize("most", [9, 70000])
def test_ids_are_those_that_occur(rng, most):
    array = rng.integers(0, most, size=(5, 6, 7)).astype(np.uint32)
    assert labels.ids_of(array).tolist() == np.unique(array).tolist()
