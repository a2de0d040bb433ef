"""Which object encloses which piece of background, against taking objects away one by one."""

import numpy as np
import pytest

from iaunet import enclosure


def literal(pairs, n_objects, n_regions):
    """Return the same from walks from the outside that leave out one object after the other."""
    beside = {region: set() for region in range(n_regions)}
    for one, other in pairs.tolist():
        beside[one].add(other)
        beside[other].add(one)
    found = [-1] * (n_regions - n_objects)
    for taken in range(n_objects):
        seen, ahead = {taken, n_objects}, [n_objects]
        while ahead:
            new = beside[ahead.pop()] - seen
            seen |= new
            ahead += new
        for piece in range(n_objects, n_regions):
            if piece not in seen and found[piece - n_objects] < 0:
                found[piece - n_objects] = taken
    return found


@pytest.mark.parametrize("seed", range(40))
def test_an_object_encloses_what_cannot_be_reached_without_it(seed):
    rng = np.random.default_rng(seed)
    n_objects, n_pieces = int(rng.integers(1, 9)), int(rng.integers(2, 9))
    n = n_objects + n_pieces
    # A tree, so that all regions are reached, and a few more pairs.
    order = np.concatenate([[n_objects], rng.permutation(np.delete(np.arange(n), n_objects))])
    tree = [(order[rng.integers(k)], order[k]) for k in range(1, n)]
    more = rng.integers(0, n, (rng.integers(0, 6), 2))
    pairs = np.sort(np.concatenate([tree, more[more[:, 0] != more[:, 1]]]), axis=1)
    pairs = np.unique(pairs, axis=0).astype(np.int64)
    found = enclosure.enclosing(pairs, n_objects, n)
    assert found.tolist() == literal(pairs, n_objects, n)


def test_objects_without_a_voxel_enclose_nothing():
    pairs = np.array([[1, 3], [1, 4]])  # of objects 0, 1, 2 only 1 is there, around piece 4
    assert enclosure.enclosing(pairs, 3, 5).tolist() == [-1, 1]
