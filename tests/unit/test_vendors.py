"""Files of microscopes, of which only the frames or windows in a box are read."""

import builtins
import gc
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest

from iaunet import images, vendors
from iaunet.errors import InputError
from microscope_files import write_ims, write_lif, write_nd2, write_oif


@pytest.fixture
def czi():
    return pytest.importorskip("pylibCZIrw.czi", reason="requirements-formats.txt not installed")


def write_czi(czi, path, values, tiles=((0, 0),), scenes=1, **metadata):
    """Write values (t, c, z, y, x) or (t, c, z, y, x, s) as a CZI of tiles and scenes."""
    height, width = values.shape[3] // len(tiles), values.shape[4]
    with czi.create_czi(str(path)) as file:
        for t, c, z in np.ndindex(values.shape[:3]):
            for scene in range(scenes):
                for k, (y, x) in enumerate(tiles):
                    part = values[t, c, z, k * height : (k + 1) * height] + scene
                    file.write(
                        np.ascontiguousarray(part if part.ndim == 3 else part[..., None]),
                        location=(x + 1000 * scene, y),
                        plane={"T": t, "C": c, "Z": z},
                        scene=scene,
                    )
        file.write_metadata("drawn", **metadata)
    assert width == values.shape[4]
    return path


def test_channels_frames_sections_and_pixel_sizes_of_a_czi_are_read(tmp_path, czi, rng):
    values = rng.integers(0, 60_000, (2, 2, 3, 40, 50)).astype(np.uint16)
    sizes = {"scale_x": 2.5e-7, "scale_y": 2.5e-7, "scale_z": 1e-6}
    names = {0: "DAPI", 1: "actin"}
    path = write_czi(czi, tmp_path / "a.czi", values, channel_names=names, **sizes)
    image = images.open_image(path, channel="actin", frame=1)
    assert image.format == "Zeiss CZI"
    assert image.axes == ("z", "y", "x")
    assert image.pixel_um == pytest.approx((1, 0.25, 0.25))
    np.testing.assert_array_equal(image.read(), values[1, 1])
    box = (slice(1, 3), slice(7, 20), slice(30, 31))
    np.testing.assert_array_equal(image.read(box), values[1, 1][box])
    with pytest.raises(InputError, match=r"has 2 channels: 0 \(DAPI\), 1 \(actin\)"):
        images.open_image(path, frame=0)


def test_the_tiles_of_a_czi_mosaic_are_one_image_and_scenes_are_chosen(tmp_path, czi, rng):
    values = rng.integers(1, 200, (1, 1, 1, 60, 30)).astype(np.uint8)
    path = tmp_path / "a.czi"
    write_czi(czi, path, values, tiles=((0, 0), (20, 30), (40, 60)), scenes=2)
    with pytest.raises(InputError, match=r"has 2 scenes.*--scene"):
        images.open_image(path)
    expected = np.zeros((60, 90), np.uint8)
    for k in range(3):
        expected[20 * k : 20 * k + 20, 30 * k : 30 * k + 30] = values[0, 0, 0, 20 * k : 20 * k + 20]
    for scene in (0, 1):
        image = images.open_image(path, scene=scene)
        np.testing.assert_array_equal(image.read(), np.where(expected, expected + scene, 0))
        box = (slice(15, 45), slice(25, 65))
        np.testing.assert_array_equal(image.read(box), image.read()[box])


def test_the_colours_of_a_czi_have_their_names(tmp_path, czi):
    values = np.zeros((1, 1, 1, 8, 9, 3), np.uint8)
    values[..., 0] = 200  # blue, as CZI stores it
    path = write_czi(czi, tmp_path / "a.czi", values)
    assert images.open_image(path, channel="blue").read().min() == 200
    assert images.open_image(path, channel="red").read().max() == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_czi_is_told_in_one_line(tmp_path, czi, rng, share):
    values = rng.integers(0, 60_000, (1, 1, 3, 40, 50)).astype(np.uint16)
    content = write_czi(czi, tmp_path / "a.czi", values).read_bytes()
    path = tmp_path / "b.czi"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"b\.czi: damaged or unsupported Zeiss CZI"):
        images.open_image(path).read()


@pytest.mark.parametrize("scan", [{}, {"FlipX": True, "FlipY": True, "SwapXY": True}])
def test_the_tiles_of_a_lif_are_put_where_the_stage_was(tmp_path, rng, scan):
    pytest.importorskip("liffile", reason="requirements-formats.txt not installed")
    values = rng.integers(1, 200, (3, 2, 20, 30)).astype(np.uint8)
    corners = [(0, 0), (0, 28), (19, 3)]
    stage = [(0.5 * y, 0.25 * x) for y, x in corners]
    if scan:
        stage = [(900 - b, 900 - a) for a, b in stage]
    path = write_lif(tmp_path / "a.lif", values, tiles=stage, **scan)
    expected = np.zeros((39, 58), np.uint8)
    for (y, x), tile in zip(corners, values[:, 1], strict=True):
        expected[y : y + 20, x : x + 30] = tile
    image = images.open_image(path, channel="dye 1")
    assert image.pixel_um == pytest.approx((0.5, 0.25))
    np.testing.assert_array_equal(image.read(), expected)
    box = (slice(15, 25), slice(20, 40))
    np.testing.assert_array_equal(image.read(box), expected[box])


def test_tiles_of_a_lif_without_places_are_refused_with_what_to_do(tmp_path):
    pytest.importorskip("liffile", reason="requirements-formats.txt not installed")
    values = np.ones((3, 1, 20, 30), np.uint8)
    for tiles, found in (([], "has 0 positions"), ([(5, 5)] * 3, "have one position")):
        path = write_lif(tmp_path / "a.lif", values, tiles=tiles)
        with pytest.raises(InputError, match=rf"{found}; merge them in LAS X and choose"):
            images.open_image(path)


def test_positions_of_an_nd2_are_scenes_and_nothing_is_left_open(tmp_path, rng):
    pytest.importorskip("nd2", reason="requirements-formats.txt not installed")
    values = rng.integers(0, 60_000, (2, 3, 2, 20, 30)).astype(np.uint16)
    path = write_nd2(tmp_path / "a.nd2", values, (1.5, 0.5), ["DAPI", "actin"])
    with pytest.raises(InputError, match="has 2 scenes: 0, 1"):
        images.open_image(path, channel="actin")
    image = images.open_image(path, channel="actin", scene=1)
    assert image.pixel_um == pytest.approx((1.5, 0.5, 0.5))
    np.testing.assert_array_equal(image.read(), values[1, :, 1])
    box = (slice(1, 3), slice(7, 20), slice(25, 30))
    np.testing.assert_array_equal(image.read(box), values[1, :, 1][box])
    words = f"import sys; sys.path[:] = {sys.path!r}; from iaunet import images"
    line = f"{words}; images.open_image({str(path)!r}, 'actin', 1).read()"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_truncated_nd2_is_told_and_closed(tmp_path):
    pytest.importorskip("nd2", reason="requirements-formats.txt not installed")
    values = np.ones((1, 2, 1, 20, 30), np.uint16)
    path = write_nd2(tmp_path / "a.nd2", values, (1.5, 0.5), ["DAPI"])
    path.write_bytes(path.read_bytes()[:-3000])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=r"a\.nd2: damaged or unsupported Nikon ND2"):
            images.open_image(path)
        gc.collect()
    assert not [one for one in told if "nd2" in str(one.message).lower()]


def test_an_oif_and_its_folder_are_one_image(tmp_path, rng):
    pytest.importorskip("oiffile", reason="requirements-formats.txt not installed")
    values = rng.integers(0, 4096, (2, 3, 20, 30)).astype(np.uint16)
    path = write_oif(tmp_path / "a.oif", values, (1.5, 0.5, 0.25))
    image = images.open_image(path, channel=1)
    assert image.format == "Olympus OIF"
    assert image.pixel_um == pytest.approx((1.5, 0.5, 0.25))
    box = (slice(1, 3), slice(7, 20), slice(25, 30))
    np.testing.assert_array_equal(image.read(box), values[1][box])
    (tmp_path / "a.oif.files/s_C002Z002.tif").unlink()
    with pytest.raises(InputError, match=r"5 sections of 2 x 3 are there; copy"):
        images.open_image(path, channel=1)
    path.with_name("a.oif.files").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"storage path not found: a\.oif\.files"):
        images.open_image(path)


def test_an_imaris_file_is_read_without_its_padding(tmp_path, rng):
    values = rng.integers(0, 60_000, (2, 2, 5, 20, 30)).astype(np.uint16)
    path = write_ims(tmp_path / "a.ims", values, (2, 0.5, 0.25), names=["DAPI", "actin"])
    image = images.open_image(path, channel="actin", frame=1)
    assert image.format == "Imaris"
    assert image.shape == (5, 20, 30)
    assert image.pixel_um == pytest.approx((2, 0.5, 0.25))
    np.testing.assert_array_equal(image.read(), values[1, 1])
    box = (slice(1, 3), slice(7, 20), slice(25, 30))
    np.testing.assert_array_equal(image.read(box), values[1, 1][box])


def test_an_imaris_file_that_points_to_other_files_is_refused(tmp_path, rng):
    values = rng.integers(0, 200, (1, 1, 2, 8, 8)).astype(np.uint8)
    write_ims(tmp_path / "other.h5", values, (1, 1, 1))
    place = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"
    link = h5py.ExternalLink("other.h5", f"{place}/Data")
    layout = h5py.VirtualLayout(values.shape[2:], np.uint8)
    layout[...] = h5py.VirtualSource("other.h5", f"{place}/Data", values.shape[2:])
    for number, text in enumerate(("no Data", "no array of three axes in this file")):
        path = write_ims(tmp_path / f"{number}.ims", values, (1, 1, 1))
        with h5py.File(path, "a") as file:
            del file[f"{place}/Data"]
            if number == 0:
                file[f"{place}/Data"] = link
            else:
                file[place].create_virtual_dataset("Data", layout)
        with pytest.raises(InputError, match=text):
            images.open_image(path)


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("a.czi", b"ZISRAWFILE" + bytes(90), "pylibCZIrw"),
        ("renamed.tif", b"ZISRAWFILE" + bytes(90), "pylibCZIrw"),
        ("a.lif", b"\x70\0\0\0" + bytes(90), "liffile"),
        ("a.nd2", b"\xda\xce\xbe\x0a" + bytes(90), "nd2"),
        ("a.oib", b"\xd0\xcf\x11\xe0" + bytes(90), "oiffile"),
    ],
)
def test_a_reader_that_is_not_installed_is_named_with_the_line_to_type(
    tmp_path, monkeypatch, name, content, package
):
    (tmp_path / name).write_bytes(content)
    found = builtins.__import__

    def absent(module, *args, **kwargs):
        if module.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return found(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=rf"{name}: .*{package}; type.*requirements-formats\.txt"):
        images.open_image(tmp_path / name)


NEEDED = {
    "a.czi": "pylibCZIrw",
    "a.lif": "liffile",
    "a.nd2": "nd2",
    "a.oib": "oiffile",
    "a.oif": "oiffile",
    "a.ims": "h5py",
}


@pytest.mark.parametrize(("name", "package"), NEEDED.items())
def test_bytes_that_are_no_image_are_told(tmp_path, name, package):
    pytest.importorskip(package, reason="requirements-formats.txt not installed")
    (tmp_path / name).write_bytes(bytes(range(256)) * 20)
    with pytest.raises(InputError, match=f"{name}: damaged or unsupported"):
        images.open_image(tmp_path / name)


REAL = [
    ("CD_s_1_t_3_c_2_z_5.czi", {"channel": "LED470", "frame": 2}, (5, 170, 240), 0.0906),
    ("s_1_t_1_c_1_z_1.czi", {}, (325, 475), 1.0833),
    ("test_image.czi", {"channel": "green"}, (513, 639), None),
    ("xyz__multiple_images.czi", {"scene": 1}, (2, 251, 251), 0.1956),
    ("testdata_2channel_xz.lif", {"scene": "xzy", "channel": 1}, (128, 23, 128), 0.1403),
]


@pytest.mark.parametrize(("name", "options", "shape", "um"), REAL)
def test_real_files_are_read_by_any_box(shared_data, name, options, shape, um, rng):
    package = {"czi": "pylibCZIrw", "lif": "liffile"}[name[-3:]]
    pytest.importorskip(package, reason="requirements-formats.txt not installed")
    image = images.open_image(shared_data / "formats" / name, **options)
    assert image.shape == shape
    assert (image.pixel_um or (None,))[-1] == (um and pytest.approx(um, rel=1e-3))
    whole = image.read()
    assert whole.std() > 0
    for _ in range(3):
        ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in shape]
        box = tuple(slice(int(a), int(b)) for a, b in ends)
        np.testing.assert_array_equal(image.read(box), whole[box])


def test_every_kind_has_a_name():
    assert set(vendors.MAGIC.values()) <= set(vendors.KINDS)
