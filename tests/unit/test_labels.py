"""Extents are those that a loop over all voxels finds, whole or block by block."""

import numpy as np
import pytest

from iaunet import labels


def extents_by_loops(array):
    found = {}
    for index in np.ndindex(array.shape):
        if array[index]:
            found.setdefault(int(array[index]), []).append(index)
    rows = []
    for label in sorted(found):
        where = np.array(found[label])
        rows.append(
            (
                label,
                len(where),
                where.min(axis=0).tolist(),
                (where.max(axis=0) + 1).tolist(),
                where.sum(axis=0).tolist(),
            )
        )
    return rows


def rows_of(found):
    columns = (found.ids, found.areas, found.starts, found.stops, found.sums)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("shape", [(7, 9), (3, 5, 6), (1, 1), (4, 1, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "int32", ">u2", "uint64"])
def test_extents_equal_a_loop_over_voxels(rng, shape, dtype):
    array = rng.integers(0, 5, size=shape).astype(dtype)
    if dtype == "uint64":
        array[array > 0] += np.uint64(2**63)
    assert rows_of(labels.extents(array, (0,) * len(shape))) == extents_by_loops(array)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
def test_an_array_without_objects_has_no_extents(shape):
    origin = (0,) * len(shape)
    nothing = labels.extents(np.zeros(shape, np.uint32), origin)
    assert len(nothing.ids) == 0
    assert nothing.starts.shape == (0, len(shape))
