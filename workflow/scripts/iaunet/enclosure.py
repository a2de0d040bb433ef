"""Regions that touch one another -> which object encloses which piece of background.

An object encloses a piece when every way from the outside to it leads through that object. In a
depth-first tree of the graph of regions, all whose ways lead through a node are the branches of it
from which no edge leads back beyond it (Hopcroft and Tarjan 1973, of articulation points).
"""

import numpy as np
from numba import njit


def enclosing(pairs: np.ndarray, n_objects: int, n_regions: int) -> np.ndarray:
    """Return for every piece of background the first object that encloses it; -1: none does.

    Parameters
    ----------
    pairs : (m, 2) int64, regions that touch, each pair once; first objects, each in one piece,
        then pieces of background. The first of these is the outside.
    """
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    start = np.searchsorted(both[:, 0], np.arange(n_regions + 1))
    found = _first_above(start, both[:, 1].copy(), n_objects)[n_objects:]
    return np.where(found < n_objects, found, -1)


@njit(cache=True, nogil=True)
def _first_above(start, neighbours, n_objects):
    """Return for every region the first object on all ways to it; `n_objects`: there is none."""
    n = len(start) - 1
    number = np.full(n, -1, dtype=np.int64)
    back = np.zeros(n, dtype=np.int64)  # the first number to which an edge leads from a branch
    parent = np.full(n, -1, dtype=np.int64)
    coming = start[:-1].copy()
    path = np.empty(n, dtype=np.int64)
    order = np.empty(n, dtype=np.int64)
    path[0] = order[0] = n_objects
    number[n_objects] = 0
    length, n_seen = 1, 1
    while length > 0:
        here = path[length - 1]
        if coming[here] == start[here + 1]:
            length -= 1
            if length > 0:
                back[parent[here]] = min(back[parent[here]], back[here])
            continue
        there = neighbours[coming[here]]
        coming[here] += 1
        if number[there] < 0:
            parent[there] = here
            number[there] = back[there] = n_seen
            path[length] = order[n_seen] = there
            length += 1
            n_seen += 1
        elif there != parent[here]:
            back[here] = min(back[here], number[there])
    first = np.full(n, n_objects, dtype=np.int64)
    for place in range(1, n_seen):
        here = order[place]
        above = parent[here]
        first[here] = first[above]
        if back[here] >= number[above]:
            first[here] = min(first[here], above)
    return first
