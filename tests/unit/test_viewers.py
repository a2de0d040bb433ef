"""What viewers make of our stores: napari by its reader, without a screen."""

import numpy as np
import pytest

from iaunet import images, omezarr

REASON = "requirements-napari.txt not installed"


def drawn(path, image, limits, classes=()):
    """Write image, labels and classes as tile.py and stitch.py do."""
    axes, whole = "zyx"[-image.ndim :], tuple(slice(0, n) for n in image.shape)
    pixel_um = (2.0, 0.5, 0.25)[-image.ndim :]
    omezarr.create_image(path, image.shape, tuple(axes), image.dtype, pixel_um, "a", {})
    omezarr.write_box(omezarr.open_level(path, mode="r+"), whole, image)
    omezarr.write_pyramid(path)
    omezarr.update_attrs(path, {"channel": "DAPI"})
    omezarr.write_display(path, limits, (image.min(), image.max()))
    for name, values, named in (
        (omezarr.INSTANCES, (image > limits[0]).astype(np.uint32), ()),
        (omezarr.SEMANTIC, (image > limits[1]).astype(np.uint8) + 1, classes),
    ):
        omezarr.write_box(omezarr.add_labels(path, name, values.dtype, {}, named), whole, values)
        omezarr.write_label_pyramid(path, name)
    return path


@pytest.mark.parametrize("shape", [(300, 410), (5, 130, 300)], ids=["2d", "3d"])
def test_napari_shows_image_labels_scale_and_colours(tmp_path, rng, shape):
    reader = pytest.importorskip("napari_ome_zarr", reason=REASON)
    layers = pytest.importorskip("napari.layers", reason=REASON)
    image = rng.integers(0, 1000, shape).astype(np.uint16)
    path = drawn(tmp_path / "a.ome.zarr", image, (100.0, 900.0), ["x", "y"])
    found = {}
    for data, options, kind in reader.napari_get_reader(str(path))(str(path)):
        made = {"image": layers.Image, "labels": layers.Labels}[kind](
            data, **options, multiscale=True
        )
        found[made.name.rpartition("/")[2]] = made
    picture, instances, classes = (found[k] for k in ("a: DAPI", "instances", "semantic"))
    np.testing.assert_array_equal(picture.data[0], image)
    np.testing.assert_array_equal(instances.data[0], image > 100)
    assert [level.shape for level in picture.data] == list(omezarr.read_meta(path).levels)
    assert list(picture.contrast_limits) == [100, 900]
    assert picture.colormap.name == "gray"
    for layer in found.values():
        np.testing.assert_allclose(layer.scale, (2.0, 0.5, 0.25)[-image.ndim :])
        assert {str(unit) for unit in layer.units} == {"micrometer"}
    colours = [tuple(classes.colormap.map(k)) for k in (1, 2)]
    expected = [(*rgb, 255) for rgb in omezarr.CLASS_RGB[:2]]
    np.testing.assert_allclose(np.array(colours), np.array(expected) / 255, atol=1e-6)
    assert list(classes.properties["class"]) == ["x", "y"]


def test_a_constant_image_has_a_window_that_viewers_accept(tmp_path):
    reader = pytest.importorskip("napari_ome_zarr", reason=REASON)
    layers = pytest.importorskip("napari.layers", reason=REASON)
    path = drawn(tmp_path / "a.ome.zarr", np.full((40, 50), 7, np.uint8), (7.0, 7.0))
    data, options, _ = reader.napari_get_reader(str(path))(str(path))[0]
    assert list(layers.Image(data, **options).contrast_limits) == [7, 8]


def test_labels_that_napari_saves_are_read_as_they_are(tmp_path, rng):
    reader = pytest.importorskip("napari_ome_zarr", reason=REASON)
    builtins = pytest.importorskip("napari_builtins.io", reason=REASON)
    path = drawn(tmp_path / "a.ome.zarr", rng.integers(0, 99, (40, 50)).astype(np.uint8), (9, 50))
    data, options, _ = reader.napari_get_reader(str(path))(str(path))[1]
    corrected = np.array(data[0])
    corrected[5:9, 5:9] = 70_000
    builtins.napari_write_labels(str(tmp_path / "b.tif"), corrected, options)
    np.testing.assert_array_equal(images.open_image(tmp_path / "b.tif").read(), corrected)
