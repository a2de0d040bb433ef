"""Batches of small crops with labels, for the losses."""

import numpy as np
import torch


def drawn_batch(rng, shape=(2, 20, 24), n=5):
    """Labels of touching boxes and the centre of each voxel's instance."""
    labels = np.zeros(shape, np.int64)
    d = len(shape) - 1
    for crop in labels:
        for label in range(1, n + 1):
            start = [rng.integers(0, length - 6) for length in shape[1:]]
            crop[tuple(slice(s, s + rng.integers(3, 7)) for s in start)] = label
    centre = np.zeros((shape[0], d, *shape[1:]), np.float32)
    for b, crop in enumerate(labels):
        for label in np.unique(crop[crop > 0]):
            where = np.nonzero(crop == label)
            middle = np.mean(where, axis=1)
            for axis in range(d):
                centre[b, axis][where] = middle[axis]
    return torch.from_numpy(labels), torch.from_numpy(centre)
