"""Focus and saturation hold for any brightness, contrast, size and kind of picture."""

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from iaunet import quality


def disc(diameter_px, blur=0.0, noise=2.0, low=20.0, high=120.0):
    """Return a disc with grains in it, blurred by a share of its diameter."""
    rng = np.random.default_rng(0)
    side = int(2.5 * diameter_px) + 2
    at = np.indices((side, side)) - side / 2
    grains = ndimage.gaussian_filter(rng.normal(0, 1, (side, side)), diameter_px / 16)
    inside = (at**2).sum(axis=0) < (diameter_px / 2) ** 2
    drawn = low + (high - low) * inside * (1 + 0.1 * grains / grains.std())
    if blur:
        drawn = ndimage.gaussian_filter(drawn, blur * diameter_px)
    return drawn + rng.normal(0, noise, drawn.shape)


@pytest.mark.parametrize("diameter_px", [12, 30, 120])
@pytest.mark.parametrize(
    "more", [{}, {"high": 4000.0, "noise": 80.0}, {"low": 200.0, "high": 20.0}]
)
def test_a_blurred_object_is_told_from_a_sharp_one(diameter_px, more):
    sharp, blurred = (
        quality.focus(disc(diameter_px, blur, **more), diameter_px) for blur in (0.0, 0.3)
    )
    assert sharp > quality.BLURRED > blurred


def test_focus_does_not_depend_on_brightness_and_contrast():
    drawn = disc(30)
    assert quality.focus(7 * drawn + 100, 30) == pytest.approx(quality.focus(drawn, 30))


@pytest.mark.parametrize(
    ("window", "diameter_px"),
    [
        pytest.param(np.ones((50, 50)), 20, id="constant"),
        pytest.param(np.ones((2, 50)), 20, id="a line"),
        pytest.param(disc(20), 5, id="smaller than what blur can be told of"),
        pytest.param(disc(20), 5000, id="larger than the window can be"),
    ],
)
def test_where_focus_cannot_be_told_there_is_none(window, diameter_px):
    assert quality.focus(window, diameter_px) is None


@pytest.mark.parametrize("top", [255, 4095, 1.0])
def test_values_that_were_cut_off_are_saturated(rng, top):
    values = np.minimum(rng.normal(0.8 * top, 0.15 * top, 5000), top)
    values = values if top == 1.0 else np.rint(values)
    share, clipped = quality.saturated(values, top)
    assert clipped
    assert share == pytest.approx((values == top).mean())


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.rint(np.random.default_rng(0).normal(100, 20, 5000)), id="bright enough"),
        pytest.param(np.random.default_rng(0).poisson(1.2, 5000), id="few photons"),
        pytest.param(np.full(100, 7), id="below the largest"),
        pytest.param(np.zeros(0), id="no pixels"),
    ],
)
def test_other_values_are_not(values):
    highest = 9 if values.size == 100 else values.max(initial=0)
    assert not quality.saturated(values, highest)[1]


def test_real_images_are_in_focus(shared_data):
    seen = []
    for path in sorted((shared_data / "nuclei2d_dsb2018/images").glob("*"))[::60]:
        (mask,) = (shared_data / "nuclei2d_dsb2018/masks").glob(f"{path.stem}*")
        image, labels = tifffile.imread(path), tifffile.imread(mask)
        found = []
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            if box is None:
                continue
            own = 2 * np.sqrt((labels[box] == label).sum() / np.pi)
            grown = tuple(
                slice(max(0, int((s.start + s.stop) / 2 - 1.25 * own)), int(s.stop + own))
                for s in box
            )
            found.append(quality.focus(image[grown], own))
        known = [value for value in found if value is not None]
        seen.append(np.median(known))
    assert len(seen) > 5
    assert min(seen) > quality.BLURRED
