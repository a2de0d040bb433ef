"""Peer: Otsu's threshold, and a watershed on the distance to the background."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage import feature, filters, segmentation

from annotated import Case, spread
from fitting import Fitted, Options, best_settings, scored
from iaunet.baselines import without_small

START = {"sigma": 1.0, "factor": 1.0, "min_distance": 5, "min_size": 16}
GRID = {
    "factor": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "sigma": (0.5, 1.0, 2.0),
    "min_distance": (3, 5, 7, 10, 14),
    "min_size": (4, 16, 32, 64),
}
N_TUNED = 40


def segment(
    image: np.ndarray, *, sigma: float, factor: float, min_distance: int, min_size: int
) -> np.ndarray:
    """Return labels, int32: pixels above `factor` times Otsu's threshold, split at necks.

    Parameters
    ----------
    image : array, shape (Y, X)
    sigma : float
        Of the Gaussian that smooths the image, and then the distances, px.
    factor : float
        Times the threshold, measured from the darkest pixel.
    min_distance : int
        Between two maxima of the distance, px.
    min_size : int
        Smaller objects are left out, px.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), sigma)
    low, high = smooth.min(), smooth.max()
    if high <= low:
        return np.zeros(image.shape, np.int32)
    mask = smooth > low + factor * (filters.threshold_otsu(smooth) - low)
    mask = ndimage.binary_fill_holes(mask)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), sigma)
    pieces, n_pieces = ndimage.label(mask)
    peaks = tuple(feature.peak_local_max(distance * mask, min_distance, exclude_border=False).T)
    # A small piece beside a large one may have no peak of its own: it is one object.
    whole = np.ones(n_pieces + 1, bool)
    whole[[0, *pieces[peaks]]] = False
    markers = np.where(whole[pieces], pieces, 0)
    markers[peaks] = n_pieces + 1 + np.arange(len(peaks[0]))
    labels = segmentation.watershed(-distance, markers, mask=mask)
    return without_small(labels, min_size)


def fit(train: Sequence[Case], chosen: Sequence[Case], options: Options) -> Fitted:
    """Choose the four settings; there is nothing to train."""
    some = spread(chosen, N_TUNED)
    settings, score = best_settings(
        scored(segment, [case.image for case in some], some), START, GRID
    )
    facts = {"settings": settings, "score": round(score, 4), "tuned_on": len(some)}
    return Fitted(lambda image: segment(image, **settings), facts)
