"""Cut true labels into tiles as an ideal segmenter would label them."""

import itertools

import numpy as np


def windows(shape, core_px, halo_px):
    """Return the starts and stops of the windows around cores that partition an image."""
    found = []
    for corner in itertools.product(
        *(range(0, n, core) for n, core in zip(shape, core_px, strict=True))
    ):
        sides = zip(corner, core_px, halo_px, shape, strict=True)
        found.append([(max(0, at - halo), min(n, at + core + halo)) for at, core, halo, n in sides])
    return found


def cut(truth, boxes, rng, dtype=np.uint32, first=1):
    """Return the tiles, with ids that are shuffled anew in each, and their places."""
    tiles = []
    for box in boxes:
        seen = truth[tuple(slice(*side) for side in box)]
        ids, place = np.unique(seen, return_inverse=True)
        new = rng.permutation(len(ids)).astype(dtype) + dtype(first)
        new[ids == 0] = 0
        tiles.append(new[place].reshape(seen.shape))
    return tiles, [[start for start, _ in box] for box in boxes]


def same_objects(one, other):
    """Return whether two label arrays have the same objects, whatever their numbers."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]).astype(np.uint64), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)
