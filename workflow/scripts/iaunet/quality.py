"""Whether a picture is good enough for the objects in it to be measured: focus and saturation.

Both are judged in windows around some objects, so that they cost the same for an image of any
size, and by the objects' own size and the image's own range, so that they hold for any kind.
"""

import math

import numpy as np
from scipy import ndimage

BLURRED = 0.2
"""Focus below which objects are blurred. Of 66 real images (fluorescence, histology, confocal,
electron microscopy) the least focused has 0.246 around its true objects; blurred by a Gaussian of
a quarter of the objects' diameter, 64 of them have 0.12 to 0.2."""
LEAST_PX, MOST_PX = 8, 400
"""Diameters of which focus can be told: of smaller objects, blur is as fine as the pixels."""
FINE, COARSE = (1 / 16, 1 / 8), (1 / 4, 1 / 2)
"""Standard deviations of the Gaussians of both bands, in diameters."""
CLIPPED = 0.01
"""Share of the objects' pixels at the largest value beyond which the image is saturated."""
SPIKE = 3
"""How many times as many of them there are than at each of the three values below."""
IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float)


def focus(window: np.ndarray, diameter_px: float) -> float | None:
    """Return how much fine detail an object has for its coarse detail; low when it is blurred.

    The root of the energy between Gaussians of 1/16 and 1/8 of the object's diameter, over that
    between 1/4 and 1/2 of it. That of white noise is taken off first; its size is estimated as
    in Immerkaer 1996, "Fast noise variance estimation". A disc with sharp edges has about 0.4.

    Parameters
    ----------
    window : 2D array
        Intensities around the object, some 2.5 diameters wide.
    diameter_px : float
        Of the object in this plane.

    Returns
    -------
    float or None
        None where it cannot be told: too few or too many pixels, or no detail at all.
    """
    if not LEAST_PX <= diameter_px <= MOST_PX or min(window.shape) < 3:
        return None
    values = window.astype(np.float64)
    noise = np.abs(ndimage.convolve(values, IMMERKAER)[1:-1, 1:-1]).mean()
    variance = (math.sqrt(math.pi / 2) / 6 * noise) ** 2
    fine, coarse = (_energy(values, diameter_px, band, variance) for band in (FINE, COARSE))
    return math.sqrt(fine / coarse) if coarse > 0 else None


def _energy(
    values: np.ndarray, diameter_px: float, band: tuple[float, float], noise: float
) -> float:
    """Return the variance between two Gaussians, without that of white noise."""
    narrow, wide = (share * diameter_px for share in band)
    found = ndimage.gaussian_filter(values, narrow) - ndimage.gaussian_filter(values, wide)
    passed = (1 / narrow**2 + 1 / wide**2 - 4 / (narrow**2 + wide**2)) / (4 * math.pi)
    return max(0.0, float(found.var()) - noise * min(1.0, passed))


def saturated(values: np.ndarray, highest: float) -> tuple[float, bool]:
    """Return which share of the objects' pixels has the largest value, and if that is too much.

    An image whose values were cut off has a spike there: more pixels than at the values just
    below. A dark image of few values has not; of objects of a single value it cannot be told.

    Parameters
    ----------
    values : array
        Intensities of pixels of objects.
    highest : float
        Of the whole image.
    """
    found, counts = np.unique(values, return_counts=True)
    if not len(found) or found[-1] < highest:
        return 0.0, False
    share = float(counts[-1] / counts.sum())
    spike = len(found) > 1 and counts[-1] > SPIKE * counts[-4:-1].mean()
    return share, bool(share > CLIPPED and spike)
