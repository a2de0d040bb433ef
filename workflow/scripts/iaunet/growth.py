"""Pairs in the order of their likelihood -> groups, compiled."""

import numpy as np
from numba import njit


@njit(cache=True)
def grown(one: np.ndarray, other: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join rows pair by pair; return the first row of the group of each, and which pairs joined.

    Parameters
    ----------
    one, other : int64 arrays
        The rows of each pair, in the order in which they are joined.
    sums : float64 array, shape (rows, channels)
        The vector of each row; those of groups are added up in it. Groups whose sums point apart
        (scalar product below 0) are not joined.
    """
    root = np.arange(len(sums))
    kept = np.zeros(len(one), dtype=np.bool_)
    for k in range(len(one)):
        a, b = one[k], other[k]
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        if a != b:
            dot = 0.0
            for channel in range(sums.shape[1]):
                dot += sums[a, channel] * sums[b, channel]
            if dot < 0:
                continue
            a, b = min(a, b), max(a, b)
            root[b] = a
            for channel in range(sums.shape[1]):
                sums[a, channel] += sums[b, channel]
        kept[k] = True
    for row in range(len(root)):  # a root stands before its members
        root[row] = root[root[row]]
    return root, kept
