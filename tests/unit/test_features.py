"""Objects measured in blocks have the values of regionprops on the whole array."""

import itertools
import warnings

import numpy as np
import pytest
from skimage.measure import regionprops
from skimage.morphology import convex_hull_image

from iaunet import features, hulls
from iaunet.grid import volume

INTENSITY = {
    "mean": "intensity_mean",
    "std": "intensity_std",
    "min": "intensity_min",
    "max": "intensity_max",
}
PROPERTY = {
    "perimeter_px": "perimeter",
    "eccentricity": "eccentricity",
    "equivalent_diameter_px": "equivalent_diameter_area",
    "axis_major_px": "axis_major_length",
    "axis_minor_px": "axis_minor_length",
    "extent": "extent",
    "equivalent_diameter_um": "equivalent_diameter_area",
    "axis_major_um": "axis_major_length",
    "axis_minor_um": "axis_minor_length",
}
# Where all voxels lie on a line or a circle, these are roots of what rounding left of 0.
ROOTS = ("eccentricity", "axis_minor_px", "axis_minor_um", "axis_major_px", "axis_major_um")


def scene(rng, shape, dtype="uint32"):
    """Draw boxes, balls, single voxels and a snake that is larger than a block."""
    labels = np.zeros(shape, dtype=np.int64)
    where = np.indices(shape)
    for label in range(1, 25):
        centre = [rng.integers(0, length) for length in shape]
        distance = sum((axis - c) ** 2 for axis, c in zip(where, centre, strict=True))
        labels[distance < rng.uniform(0, 40)] = 3 * label
    labels[..., shape[-1] // 2] = 100
    labels[..., 0, 0] = 101
    labels = labels.astype(dtype)
    if dtype == "uint64":
        labels[labels > 0] += np.uint64(2**40)
    return labels, rng.integers(0, 60_000, size=shape).astype(np.uint16)


class Lazy:
    """An array that remembers the largest box that was read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, box):
        found = self.array[box]
        self.largest = max(self.largest, found.size)
        return found


def by_regionprops(labels, image, spacing):
    """Return the oracle: one call for the whole arrays."""
    ids, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + (ids[0] > 0)
    props = regionprops(dense, image)
    table = {"label": ids[ids > 0]}
    axes = "zyx"[-labels.ndim :]
    size, unit = ("area", "um2") if labels.ndim == 2 else ("volume", "um3")
    table[f"{size}_px"] = [p.area for p in props]
    table[f"{size}_{unit}"] = [p.area * np.prod(spacing) for p in props]
    for k, axis in enumerate(axes):
        table[f"{axis}_px"] = [p.centroid[k] for p in props]
        table[f"{axis}_um"] = [p.centroid[k] * spacing[k] for p in props]
        table[f"bbox_{axis}_min"] = [p.bbox[k] for p in props]
        table[f"bbox_{axis}_max"] = [p.bbox[k + labels.ndim] for p in props]
    for name, source in INTENSITY.items():
        table[f"{name}_intensity_DAPI"] = [p[source] for p in props]
    in_um = regionprops(dense, spacing=spacing)
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        solidity = np.array([p.solidity for p in props])
    table["solidity"] = np.where(np.isfinite(solidity), solidity, np.nan)
    for name, source in PROPERTY.items():
        if labels.ndim == 2 or name not in features.SHAPE_2D:
            table[name] = [p[source] for p in (in_um if name.endswith("_um") else props)]
    return table


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
@pytest.mark.parametrize(
    ("shape", "block", "spacing"),
    [
        ((70, 61), (16, 16), (0.5, 0.5)),
        ((70, 61), (100, 7), (0.5, 0.25)),
        ((9, 40, 33), (4, 16, 16), (2.0, 0.5, 0.5)),
        ((9, 40, 33), (64, 64, 64), (1.0, 1.0, 1.0)),
    ],
)
def test_values_equal_regionprops_of_the_whole_array(rng, shape, block, spacing, dtype):
    labels, image = scene(rng, shape, dtype)
    found = features.measure_objects(
        labels, image, block_px=block, pixel_um=spacing, channel="DAPI"
    )
    expected = by_regionprops(labels, image, spacing)
    assert set(found) == {*expected, "touches_border"}
    for name, values in expected.items():
        near_zero = 1e-6 if name in ROOTS else 0
        if found[name].dtype == float:
            np.testing.assert_allclose(
                found[name], values, rtol=1e-12, atol=near_zero, err_msg=name
            )
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    on_border = np.unique(
        np.concatenate([np.take(labels, (0, -1), axis).ravel() for axis in range(labels.ndim)])
    )
    np.testing.assert_array_equal(
        found["touches_border"], np.isin(found["label"], on_border), strict=True
    )


def test_the_table_has_the_promised_columns_in_order(rng):
    columns = features.object_columns(2, "DAPI, wide\n", np.dtype("uint16"))
    assert ",".join(list(columns)[:15]) == (
        "image,label,y_um,x_um,y_px,x_px,area_px,area_um2,bbox_y_min,bbox_y_max,bbox_x_min,bbox_x_max,"
        "confidence,mean_intensity_DAPI__wide_,std_intensity_DAPI__wide_"
    )
    assert list(columns)[-3:] == ["touches_border", "crosses_seam", "n_tiles"]
    columns = features.object_columns(3, "0", np.dtype("float32"))
    assert ",".join(list(columns)[2:10]) == "z_um,y_um,x_um,z_px,y_px,x_px,volume_px,volume_um3"
    assert columns["min_intensity_0"] == "float64"
    labels, image = scene(rng, (9, 20, 20))
    found = features.measure_objects(labels, image, block_px=(8, 8, 8), pixel_um=None, channel="0")
    assert set(columns) - set(found) == {"image", "confidence", "crosses_seam", "n_tiles"}


def test_without_pixel_size_there_are_no_micrometres(rng):
    labels, image = scene(rng, (40, 40))
    for pixel_um in (None, (0.5, None)):
        found = features.measure_objects(
            labels, image, block_px=(16, 16), pixel_um=pixel_um, channel="0"
        )
        assert np.isnan(found["area_um2"]).all()
        assert np.isnan(found["axis_major_um"]).all()
        assert np.isfinite(found["axis_major_px"]).all()


@pytest.mark.parametrize("shape", [(30, 30), (4, 20, 20)])
def test_no_objects_give_empty_columns(shape):
    found = features.measure_objects(
        np.zeros(shape, np.uint32),
        np.zeros(shape, np.float32),
        block_px=shape,
        pixel_um=None,
        channel="0",
    )
    assert {len(values) for values in found.values()} == {0}


def test_no_more_is_read_at_once_than_the_objects_of_a_block_need(rng):
    labels, image = scene(rng, (200, 150))
    labels[labels == 100] = 0
    lazy = Lazy(labels)
    features.measure_objects(lazy, image, block_px=(16, 16), pixel_um=None, channel="0")
    assert lazy.largest <= 32 * 32


def hull_size(mask):
    """Return the number of voxels in the hull of a mask."""
    three = volume(mask.astype(np.uint8))
    return hulls.hull_size_px(three, 1, np.zeros(3, int), np.array(three.shape), mask.ndim)


@pytest.mark.parametrize("shape", [(9, 13, 11), (23, 31)])
def test_the_hull_has_the_voxels_that_skimage_finds(rng, shape):
    where = np.indices(shape)
    for _ in range(40):
        slopes = rng.integers(-3, 4, size=(4, len(shape)))
        drawn = [np.tensordot(slope, where, 1) <= rng.integers(0, 30) for slope in slopes]
        mask = np.all(drawn, axis=0) & (rng.random(shape[1:]) < rng.choice([0.05, 0.5, 1]))
        if mask.any() and (len(shape) == 2 or np.ptp(np.argwhere(mask), axis=0).min() > 1):
            assert hull_size(mask) == convex_hull_image(mask).sum()


@pytest.mark.parametrize("shape", [(30, 24, 27), (3, 40, 40), (40, 5, 4)])
def test_the_hull_of_blobs_and_scattered_voxels_has_the_voxels_that_skimage_finds(rng, shape):
    where = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    for _ in range(10):
        turned = where @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        radii = rng.uniform(0.2, 0.7, 3) * shape
        mask = (np.abs(turned / radii) ** rng.choice([0.8, 2, 2.5, 8])).sum(axis=-1) < 1
        for some in (mask, mask & (rng.random(shape) < 0.02)):
            if some.any() and np.linalg.matrix_rank(np.diff(np.argwhere(some), axis=0)) == 3:
                assert hull_size(some) == convex_hull_image(some).sum()


def test_the_hull_is_as_large_along_whichever_axes_the_object_lies(rng):
    mask = rng.random((7, 12, 9)) < 0.03
    for axes in itertools.permutations(range(3)):
        assert hull_size(mask.transpose(axes)) == hull_size(mask)
        assert hull_size(np.flip(mask, axes[0])) == hull_size(mask)


def test_an_object_in_one_plane_has_no_hull_in_3d(rng):
    where = np.indices((9, 11, 10))
    for slope in rng.integers(1, 4, size=(30, 3)) * rng.choice([-1, 0, 1], size=(30, 3)):
        height = np.tensordot(slope, where, 1)
        plane = height == height[4, 5, 5]
        assert not slope.any() or hull_size(plane & (rng.random(plane.shape) < 0.5)) == 0
    line = np.zeros((5, 5, 5), bool)
    line[range(5), range(5), range(5)] = True
    assert hull_size(line) == 0
    line[0, 0, 1] = True
    assert hull_size(line) == 0
    line[0, 1, 0] = True
    assert hull_size(line) == convex_hull_image(line).sum()


@pytest.mark.filterwarnings("error")
def test_the_smallest_objects_have_finite_values_but_no_hull_in_3d():
    for shape in ((5, 5), (3, 5, 5)):
        labels = np.zeros(shape, np.uint8)
        labels[..., 1, 1] = 1
        labels[..., 3, :2] = 2
        labels[(0,) * (len(shape) - 2) + (4, 4)] = 3
        found = features.measure_objects(
            labels, labels, block_px=shape, pixel_um=(1,) * len(shape), channel="0"
        )
        solidity = found.pop("solidity")
        np.testing.assert_array_equal(solidity, np.full(3, 1 if len(shape) == 2 else np.nan))
        for name, values in found.items():
            assert np.isfinite(values).all(), name


def test_an_object_too_large_to_crop_keeps_its_place_and_intensity(rng, monkeypatch, caplog):
    monkeypatch.setattr(features, "LARGEST_BOX_PX", 50 * 50)
    labels, image = scene(rng, (70, 61))
    labels[labels == 100] = 0
    labels[1:69, 5:60][labels[1:69, 5:60] == 0] = 7
    lazy = Lazy(labels)
    found = features.measure_objects(
        lazy, image, block_px=(16, 16), pixel_um=(1, 1), channel="DAPI"
    )
    expected = by_regionprops(labels, image, (1, 1))
    one = found["label"] == 7
    for name, values in expected.items():
        values = np.where(one & (name in ("solidity", "perimeter_px")), np.nan, values)
        np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-6, err_msg=name)
    assert "object 7: its box of 68 x 55 px is too large" in caplog.text
    assert features.n_too_large(found) == 1
    assert lazy.largest <= 32 * 32


def test_a_piece_of_an_object_too_large_to_crop_is_not_taken_for_the_object(rng, monkeypatch):
    monkeypatch.setattr(features, "LARGEST_BOX_PX", 50 * 50)
    labels = np.zeros((70, 70), np.uint32)
    labels[2:5, 2:5] = labels[66:69, 66:69] = 1
    found = features.measure_objects(labels, labels, block_px=(16, 16), pixel_um=None, channel="0")
    assert found["area_px"].tolist() == [18]
    assert np.isnan(found["perimeter_px"]).all()
    assert np.isnan(found["solidity"]).all()


def test_labels_of_another_shape_are_our_mistake():
    with pytest.raises(ValueError, match=r"labels have the shape \(3, 3\), the image \(3, 4\)"):
        features.measure_objects(
            np.zeros((3, 3), int), np.zeros((3, 4)), block_px=(3, 3), pixel_um=None, channel="0"
        )
