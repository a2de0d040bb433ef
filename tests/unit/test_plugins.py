"""Formats that a plug-in of bioio reads, and what is said where there is none."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from iaunet import images, plugins
from iaunet.errors import InputError

REASON = "requirements-formats.txt not installed"


class Plain(SimpleNamespace):
    """Attributes that can be a key."""

    __hash__ = object.__hash__


@pytest.fixture
def mrc():
    pytest.importorskip("bioio_dv", reason=REASON)
    return pytest.importorskip("mrc", reason=REASON)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Install a plug-in for files ``.drawn``; it leaves a file for each block that it reads."""
    base = pytest.importorskip("bioio_base", reason=REASON)
    xarray = pytest.importorskip("xarray", reason=REASON)
    import bioio.plugins
    import dask.array

    class Reader(base.reader.Reader):
        scenes = ("left", "right")
        channel_names = ("DAPI", "actin")
        physical_pixel_sizes = base.types.PhysicalPixelSizes(2.0, 0.5, 0.25)
        dims_read = "TCZYX"

        def __init__(self, image, fs_kwargs=None):
            pass

        @staticmethod
        def _is_supported_image(fs, path, **kwargs):
            return "good" in str(path)

        def _read_delayed(self):
            def block(block_id):
                (tmp_path / f"read {self.current_scene} {block_id[:3]}").touch()
                return np.full((1, 1, 1, 6, 7), value(self.current_scene, block_id), np.uint16)

            chunks = ((1, 1), (1, 1), (1, 1, 1), (6,), (7,))
            array = dask.array.map_blocks(block, chunks=chunks, dtype=np.uint16)
            return xarray.DataArray(array, dims=list(self.dims_read))

        _read_immediate = _read_delayed

    metadata = Plain(get_supported_extensions=lambda: ["drawn"], get_reader=lambda: Reader)
    plugin = Plain(ReaderMetadata=metadata)
    entry = Plain(name="bioio-dv", load=lambda: plugin)
    monkeypatch.setattr(bioio.plugins, "entry_points", lambda group: [entry])
    return Reader


def value(scene, block_id):
    return 100 * (scene == "right") + int("".join(map(str, block_id[:3])))


def test_a_deltavision_file_is_read_by_channel_and_box(tmp_path, rng, mrc):
    values = rng.integers(0, 4096, (2, 3, 20, 30)).astype(np.uint16)
    path = tmp_path / "a.dv"
    mrc.imsave(str(path), values, resolution=(0.25, 0.5, 2))
    image = images.open_image(path, channel=1)
    assert image.format == "DeltaVision by bioio-dv"
    assert image.shape == (3, 20, 30)
    assert image.pixel_um == pytest.approx((2, 0.5, 0.25))
    box = (slice(1, 3), slice(7, 20), slice(25, 30))
    np.testing.assert_array_equal(image.read(box), values[1][box])


def test_a_damaged_deltavision_file_is_told(tmp_path, mrc, rng):
    path = tmp_path / "a.dv"
    mrc.imsave(str(path), rng.integers(0, 99, (20, 30)).astype(np.uint16))
    content = path.read_bytes()
    for damaged in (content[:1400], b"no pixels" * 300):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.dv: damaged or unsupported DeltaVision"):
            images.open_image(path).read()


def test_of_any_plugin_only_the_blocks_under_a_box_are_read(tmp_path, drawn):
    path = tmp_path / "good.drawn"
    path.write_text("pixels")
    with pytest.raises(InputError, match=r"has 2 scenes: 0 \(left\), 1 \(right\)"):
        images.open_image(path)
    image = images.open_image(path, scene="right", channel="actin", frame=1)
    assert image.format.startswith("'.drawn' by ")
    assert image.pixel_um == pytest.approx((2, 0.5, 0.25))
    for file in tmp_path.glob("read *"):
        file.unlink()
    found = image.read((slice(1, 3), slice(2, 5), slice(0, 7)))
    expected = [value("right", (1, 1, z)) for z in (1, 2)]
    np.testing.assert_array_equal(
        found, np.broadcast_to(np.reshape(expected, (2, 1, 1)), (2, 3, 7))
    )
    read = {file.name for file in tmp_path.glob("read *")}
    assert read == {"read right (1, 1, 1)", "read right (1, 1, 2)"}


def test_tiles_that_a_plugin_does_not_put_together_are_refused(tmp_path, drawn):
    drawn.dims_read = "MCZYX"
    path = tmp_path / "good.drawn"
    path.write_text("pixels")
    with pytest.raises(InputError, match=r"mosaic of 2 tiles .* merge them"):
        images.open_image(path)


def test_a_plugin_that_does_not_start_is_told(tmp_path, drawn, monkeypatch):
    import bioio.plugins

    entry = Plain(name="bioio-absent", load=lambda: None)
    monkeypatch.setattr(bioio.plugins, "entry_points", lambda group: [entry])
    (tmp_path / "a.xyz").write_text("pixels")
    with pytest.raises(InputError, match=r"a\.xyz: a plug-in of bioio does not start"):
        images.open_image(tmp_path / "a.xyz")


def test_what_no_plugin_knows_is_told_with_what_to_do(tmp_path, drawn):
    path = tmp_path / "bad.drawn"
    path.write_text("pixels")
    with pytest.raises(InputError, match=r"neither TIFF, PNG, OME-Zarr.*convert it to OME-TIFF"):
        images.open_image(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.dv", "DeltaVision needs the package bioio-dv; type make formats"),
        ("a.vsi", r"Olympus VSI needs the package bioio-bioformats; type python -m pip install"),
        ("a.h5", "HDF5 is not read; convert it to OME-TIFF"),
        ("a.xyz", "neither TIFF, PNG, OME-Zarr nor a format of docs/formats.md"),
    ],
)
def test_a_plugin_that_is_not_there_is_named_with_the_line_to_type(
    tmp_path, monkeypatch, name, text
):
    for package in ("bioio", "bioio_dv", "bioio_bioformats"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda package: None)
    (tmp_path / name).write_bytes(b"pixels" * 30)
    with pytest.raises(InputError, match=rf"{name}: {text}"):
        images.open_image(tmp_path / name)
