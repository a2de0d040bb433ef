"""Network outputs -> labels without an embedding.

What the ablation compares the clustering with: connected components of the mask, and a
watershed on the predicted distance map.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed as flood

from iaunet import fixedpoint


def components(outputs: Mapping[str, np.ndarray], *, fg: float, min_size: int) -> np.ndarray:
    """Return the face-connected components of the mask: one category, no instances learnt.

    Parameters
    ----------
    outputs : as `fixedpoint` describes them; only fg is looked at.
    fg : smallest foreground probability of an object voxel.
    min_size : smallest number of voxels of an object.
    """
    labels, _ = ndimage.label(outputs["fg"] >= fg * fixedpoint.SCALE["fg"])
    return without_small(labels, min_size)


def watershed(
    outputs: Mapping[str, np.ndarray],
    *,
    seed: float,
    fg: float,
    smooth: int,
    seed_window: int | Sequence[int],
    min_size: int,
) -> np.ndarray:
    """Return the basins of the predicted distance map (the output ``seed``) within the mask.

    Markers are its maxima within `seed_window` px on each side, above `seed`, after `smooth`
    passes of a 3-wide box mean; equal neighbours are one marker.
    """
    depth = outputs["seed"] / fixedpoint.SCALE["seed"]
    for _ in range(smooth):
        depth = ndimage.uniform_filter(depth, 3, mode="constant")
    mask = outputs["fg"] >= fg * fixedpoint.SCALE["fg"]
    size = 2 * np.broadcast_to(seed_window, depth.ndim) + 1
    highest = ndimage.maximum_filter(depth, tuple(size), mode="constant")
    peaks = mask & (depth > seed) & (depth == highest)
    markers, _ = ndimage.label(peaks, np.ones((3,) * depth.ndim))
    return without_small(flood(-depth, markers, mask=mask), min_size)


def without_small(labels: np.ndarray, min_size: int) -> np.ndarray:
    """Return labels 1 to n, int32, without the objects of fewer than `min_size` voxels."""
    kept = np.bincount(labels.ravel()) >= min_size
    kept[0] = False
    return (np.cumsum(kept) * kept)[labels].astype(np.int32)
