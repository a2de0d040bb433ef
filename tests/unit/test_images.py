import json
import math
import re
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

from iaunet import images, tiff
from iaunet.errors import InputError

DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32]
LAYOUTS = [
    pytest.param({}, id="plain"),
    pytest.param({"byteorder": ">"}, id="big endian"),
    pytest.param({"bigtiff": True}, id="BigTIFF"),
    pytest.param({"rowsperstrip": 7}, id="strips"),
    pytest.param({"compression": "zlib"}, id="compressed, one strip"),
    pytest.param({"compression": "lzw", "rowsperstrip": 5, "predictor": True}, id="lzw"),
    pytest.param({"tile": (16, 32)}, id="tiles"),
    pytest.param({"tile": (32, 16), "compression": "zstd", "predictor": True}, id="zstd tiles"),
    pytest.param({"metadata": None}, id="no metadata"),
]


def drawn(shape, dtype, rng):
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    ends = np.iinfo(dtype)
    return rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)


def random_box(shape, rng):
    ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in shape]
    return tuple(slice(int(a), int(b)) for a, b in ends)


def assert_reads(image, expected, rng):
    assert image.shape == expected.shape
    np.testing.assert_array_equal(image.read(), expected)
    for _ in range(5):
        box = random_box(expected.shape, rng)
        found = image.read(box)
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, expected[box])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(61, 83), (7, 61, 83)], ids=["2d", "3d"])
def test_any_tiff_is_read_by_any_box(tmp_path, dtype, layout, shape, rng):
    expected = drawn(shape, dtype, rng)
    if layout.get("predictor") and np.dtype(dtype).kind == "f":
        layout = {**layout, "predictor": 3}
    tifffile.imwrite(tmp_path / "a.tif", expected, photometric="minisblack", **layout)
    assert_reads(images.open_image(tmp_path / "a.tif"), expected, rng)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, bool, np.int64, np.uint64])
def test_odd_dtypes_are_read_as_near_ones(tmp_path, dtype, rng):
    expected = rng.integers(0, 2, (20, 30)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", expected)
    image = images.open_image(tmp_path / "a.tif")
    wanted = {"f": np.float32, "b": np.uint8}.get(np.dtype(dtype).kind, dtype)
    assert image.dtype == wanted
    np.testing.assert_array_equal(image.read(), expected.astype(wanted))


@pytest.mark.parametrize("axes", ["TZCYX", "TCZYX", "CZYX", "ZCYX", "CYX", "TYX", "ZYX"])
def test_the_chosen_channel_and_frame_of_an_ome_tiff_are_read(tmp_path, axes, rng):
    sizes = {"T": 3, "Z": 4, "C": 2, "Y": 31, "X": 22}
    values = drawn([sizes[axis] for axis in axes], np.uint16, rng)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": axes})
    options = {name: 1 for name, axis in (("channel", "C"), ("frame", "T")) if axis in axes}
    index = tuple(1 if axis in "TC" else slice(None) for axis in axes)
    image = images.open_image(tmp_path / "a.ome.tif", **options)
    assert image.format == "OME-TIFF"
    assert_reads(image, values[index], rng)


@pytest.mark.parametrize("axes", ["TZCYX", "ZCYX", "TYX", "ZYX", "CYX"])
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_chosen_channel_and_frame_of_a_hyperstack_are_read(tmp_path, axes, contiguous, rng):
    sizes = {"T": 3, "Z": 4, "C": 2, "Y": 31, "X": 22}
    values = drawn([sizes[axis] for axis in axes], np.uint16, rng)
    more = {} if contiguous else {"compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": axes}, **more)
    options = {name: 1 for name, axis in (("channel", "C"), ("frame", "T")) if axis in axes}
    index = tuple(1 if axis in "TC" else slice(None) for axis in axes)
    image = images.open_image(tmp_path / "a.tif", **options)
    assert image.format == "ImageJ TIFF"
    assert_reads(image, values[index], rng)


@pytest.mark.parametrize("axes", ["XYZ", "YXZ", "XZY", "XY"])
def test_any_order_of_axes_is_read_as_zyx(tmp_path, axes, rng):
    values = drawn([{"Z": 5, "Y": 31, "X": 22}[axis] for axis in axes], np.uint8, rng)
    array = zarr.create_array(
        tmp_path / "a.zarr",
        data=values,
        dimension_names=list(axes.lower()),
        chunks=(4,) * len(axes),
    )
    assert array.shape == values.shape
    order = [axes.index(axis) for axis in "ZYX" if axis in axes]
    assert_reads(images.open_image(tmp_path / "a.zarr"), values.transpose(order), rng)


def test_several_pages_are_planes(tmp_path, rng):
    values = drawn((6, 20, 30), np.uint8, rng)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in values:
            file.write(plane, metadata=None)
    image = images.open_image(tmp_path / "a.tif")
    assert image.axes == ("z", "y", "x")
    assert_reads(image, values, rng)


def test_axes_of_length_one_are_dropped(tmp_path, rng):
    values = drawn((1, 1, 1, 20, 30), np.uint8, rng)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "TCZYX"})
    image = images.open_image(tmp_path / "a.ome.tif")
    assert image.axes == ("y", "x")
    np.testing.assert_array_equal(image.read(), values[0, 0, 0])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_colours_are_channels(tmp_path, planar, layout, rng):
    values = drawn((33, 40, 3), np.uint8, rng)
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **layout)
    for index, name in enumerate(["red", "green", "blue"]):
        assert_reads(images.open_image(tmp_path / "a.tif", name), values[..., index], rng)
    with pytest.raises(InputError, match=r"has 3 channels: 0 \(red\), 1 \(green\), 2 \(blue\)"):
        images.open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_is_read(tmp_path, dtype, rng):
    values = drawn((33, 40), dtype, rng)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    image = images.open_image(tmp_path / "a.png")
    assert (image.format, image.dtype) == ("PNG", dtype)
    assert_reads(image, values, rng)


@pytest.mark.parametrize(("samples", "names"), [(2, None), (3, "rgb"), (4, "rgba")])
def test_png_with_colours_asks_for_one(tmp_path, samples, names, rng):
    values = drawn((33, 40, samples), np.uint8, rng)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    if names is None:
        np.testing.assert_array_equal(images.open_image(tmp_path / "a.png").read(), values[..., 0])
        return
    with pytest.raises(InputError, match="fill in the column 'channel'"):
        images.open_image(tmp_path / "a.png")
    blue = images.open_image(tmp_path / "a.png", channel="Blue")
    np.testing.assert_array_equal(blue.read(), values[..., 2])


# Pixel sizes


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("micron", 1), ("um", 1), ("\\u00B5m", 1), ("nm", 1e-3), ("mm", 1e3), ("inch", 25400)],
)
def test_pixel_size_of_a_hyperstack(tmp_path, unit, factor, rng):
    size = 0.2 / factor
    tifffile.imwrite(
        tmp_path / "a.tif",
        drawn((3, 20, 30), np.uint8, rng),
        imagej=True,
        resolution=(1 / size, 1 / size),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 1.5 / factor},
    )
    found = images.open_image(tmp_path / "a.tif").pixel_um
    np.testing.assert_allclose(found, (1.5, 0.2, 0.2), rtol=1e-5)


@pytest.mark.parametrize(("unit", "factor"), [("µm", 1), ("nm", 1e-3), ("mm", 1e3), ("Å", 1e-4)])
def test_pixel_size_of_an_ome_tiff(tmp_path, unit, factor, rng):
    meta = {"axes": "ZYX"}
    for axis, size in (("Z", 1.5), ("Y", 0.25), ("X", 0.2)):
        meta |= {f"PhysicalSize{axis}": size / factor, f"PhysicalSize{axis}Unit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", drawn((3, 20, 30), np.uint8, rng), metadata=meta)
    found = images.open_image(tmp_path / "a.ome.tif").pixel_um
    np.testing.assert_allclose(found, (1.5, 0.25, 0.2))


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((20_000, 20_000), "CENTIMETER", (0.5, 0.5)),
        ((72, 72), "INCH", None),
        ((300, 300), "INCH", None),
        ((72, 72), "CENTIMETER", None),
        ((4, 4), "NONE", None),
    ],
)
def test_only_credible_resolution_tags_are_believed(tmp_path, resolution, unit, expected):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((4, 4), np.uint8),
        resolution=resolution,
        resolutionunit=unit,
        metadata=None,
    )
    assert images.open_image(tmp_path / "a.tif").pixel_um == expected


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "abc"])
def test_senseless_pixel_sizes_are_unknown(tmp_path, size):
    meta = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 4), np.uint8), metadata=meta)
    image = images.open_image(tmp_path / "a.ome.tif")
    assert image.pixel_um is None
    assert image.partial_pixel_um == {"y": 0.5}


# OME-Zarr


def ome_zarr(path, values, axes, version="0.5", scale=None, unit="micrometer", channels=(), **more):
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", shape=values.shape, dtype=values.dtype, chunks=(4,) * values.ndim)
    zarr.config.set({"array.write_empty_chunks": True})
    group["0"][...] = values
    kind = {"c": "channel", "t": "time"}
    listed = [{"name": axis, "type": kind.get(axis, "space")} for axis in axes]
    for axis in listed:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    transform = {"type": "scale", "scale": scale or [1.0] * values.ndim}
    ome = {
        "version": version,
        "multiscales": [
            {
                "version": version,
                "axes": listed,
                "datasets": [{"path": "0", "coordinateTransformations": [transform]}],
            }
        ],
        **more,
    }
    if channels:
        ome["omero"] = {"channels": [{"label": name} for name in channels]}
    group.attrs.update(ome if version == "0.4" else {"ome": ome})
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx", "tczyx"])
def test_ome_zarr_of_both_versions_is_read(tmp_path, version, axes, rng):
    sizes = {"t": 2, "c": 2, "z": 5, "y": 9, "x": 11}
    values = drawn([sizes[axis] for axis in axes], np.uint16, rng)
    scale = [{"z": 2000.0, "y": 250.0, "x": 200.0}.get(axis, 1.0) for axis in axes]
    path = ome_zarr(
        tmp_path / "a.zarr",
        values,
        axes,
        version,
        scale,
        "nanometer",
        ["DAPI", "GFP"] if "c" in axes else (),
    )
    options = {name: 1 for name, axis in (("channel", "c"), ("frame", "t")) if axis in axes}
    image = images.open_image(path, **options)
    index = tuple(1 if axis in "tc" else slice(None) for axis in axes)
    assert_reads(image, values[index], rng)
    assert image.format == f"OME-Zarr {version}"
    assert image.pixel_um == tuple({"z": 2, "y": 0.25, "x": 0.2}[axis] for axis in image.axes)
    if "c" in axes:
        assert image.channel == "GFP"
        by_name = images.open_image(path, **{**options, "channel": "gfp"})
        np.testing.assert_array_equal(by_name.read(), image.read())


def test_the_images_of_a_plate_and_of_bioformats2raw_are_scenes(tmp_path, rng):
    first, second = drawn((8, 9), np.uint8, rng), drawn((7, 5), np.uint8, rng)
    plate = zarr.create_group(tmp_path / "plate.zarr")
    plate.attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": "A/1"}]}}
    well = plate.create_group("A/1")
    well.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": "0"}, {"path": "1"}]}}
    layout = zarr.create_group(tmp_path / "layout.zarr")
    layout.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    for folder in (tmp_path / "plate.zarr/A/1", tmp_path / "layout.zarr"):
        ome_zarr(folder / "0", first, "yx")
        ome_zarr(folder / "1", second, "yx")
    with pytest.raises(InputError, match=r"has 2 scenes: 0 \(A/1/0\), 1 \(A/1/1\)"):
        images.open_image(tmp_path / "plate.zarr")
    for path, scene in (("plate.zarr", "A/1/1"), ("plate.zarr", 1), ("layout.zarr", "1")):
        assert_reads(images.open_image(tmp_path / path, scene=scene), second, rng)


def test_a_missing_file_of_a_multi_file_ome_tiff_is_told(tmp_path, rng):
    values = drawn((2, 8, 9), np.uint8, rng)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        xml = file.ome_metadata
    xml = xml.replace('SizeZ="2"', 'SizeZ="3"')
    tifffile.imwrite(tmp_path / "b.ome.tif", values, description=xml, metadata=None)
    with pytest.raises(InputError, match=r"missing|truncated|damaged"):
        images.open_image(tmp_path / "b.ome.tif").read()


def test_a_scale_without_unit_is_no_pixel_size(tmp_path, rng):
    path = ome_zarr(tmp_path / "a.zarr", drawn((8, 8), np.uint8, rng), "yx", unit=None)
    assert images.open_image(path).pixel_um is None


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_zarr_array_is_read(tmp_path, zarr_format, rng):
    values = drawn((5, 9, 11), np.uint8, rng)
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(2, 4, 4), zarr_format=zarr_format)
    assert_reads(images.open_image(tmp_path / "a.zarr"), values, rng)


def test_an_ome_zarr_without_pixels_is_refused(tmp_path, rng):
    path = ome_zarr(tmp_path / "a.zarr", drawn((8, 8), np.uint8, rng), "yx")
    for chunk in (path / "0/c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(InputError, match="no chunk of this array is there"):
        images.open_image(path)


def test_an_absent_chunk_is_never_silent(tmp_path, rng):
    path = ome_zarr(tmp_path / "a.zarr", drawn((8, 8), np.uint8, rng), "yx")
    (path / "0/c/1/1").unlink()
    image = images.open_image(path)
    assert not image.read()[4:, 4:].any()
    assert image.warnings == ["1 chunks are absent and read as the fill value 0"]


def test_an_absent_chunk_that_a_coarser_level_shows_is_refused(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", np.ones((8, 8), np.uint8), "yx")
    group = zarr.open_group(path)
    group.create_array("1", data=np.ones((4, 4), np.uint8))
    ome = group.attrs["ome"]
    ome["multiscales"][0]["datasets"].append(
        {
            "path": "1",
            "coordinateTransformations": [{"type": "scale", "scale": [2.0, 2.0]}],
        }
    )
    group.attrs["ome"] = ome
    (path / "0/c/0/1").unlink()
    with pytest.raises(InputError, match="chunk 0/1 is absent, but 1 shows"):
        images.open_image(path).read()


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_chunk_is_told(tmp_path, damage, rng):
    path = ome_zarr(tmp_path / "a.zarr", drawn((8, 8), np.uint8, rng), "yx")
    chunk = path / "0/c/0/0"
    chunk.write_bytes(chunk.read_bytes()[:5] if damage == "cut" else b"x" * 40)
    with pytest.raises(InputError, match="damaged chunk within"):
        images.open_image(path).read()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"zarr_format": 9}'])
@pytest.mark.parametrize("name", ["zarr.json", ".zgroup", ".zarray"])
def test_a_damaged_zarr_is_told(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="Zarr"):
        images.open_image(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            ("shape",),
            [10**7, 10**7],
            "declares 100,000,000,000,000 bytes of pixels",
        ),
        (("chunk_grid", "configuration", "chunk_shape"), [0, 4], "Zarr"),
        (("data_type",), "complex64", "pixels are complex64"),
        (("codecs",), [{"name": "unheard"}], "Zarr"),
    ],
)
def test_senseless_zarr_metadata_are_told(tmp_path, key, value, message, rng):
    path = ome_zarr(tmp_path / "a.zarr", drawn((8, 8), np.uint8, rng), "yx")
    described = json.loads((path / "0/zarr.json").read_text())
    node = described
    for name in key[:-1]:
        node = node[name]
    node[key[-1]] = value
    if value == "complex64":
        described["fill_value"] = [0, 0]
    (path / "0/zarr.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=message):
        images.open_image(path)


@pytest.mark.parametrize("axes", [["y", "y"], ["x"], [None, 3], ["y", "x", "z"]])
def test_senseless_axes_are_told(tmp_path, axes, rng):
    path = ome_zarr(tmp_path / "a.zarr", drawn((8, 8), np.uint8, rng), "yx")
    described = json.loads((path / "zarr.json").read_text())
    described["attributes"]["ome"]["multiscales"][0]["axes"] = [{"name": one} for one in axes]
    (path / "zarr.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"ax[ei]s"):
        images.open_image(path)


# Choices


def test_several_scenes_are_listed(tmp_path, rng):
    first, second = drawn((20, 30), np.uint8, rng), drawn((10, 12), np.uint8, rng)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(first, metadata={"axes": "YX", "Name": "left"})
        file.write(second, metadata={"axes": "YX", "Name": "right"})
    with pytest.raises(
        InputError, match=r"has 2 scenes: 0 \(left\), 1 \(right\); fill in the column 'scene'"
    ):
        images.open_image(tmp_path / "a.ome.tif")
    for wanted in ("right", 1, "1", "RIGHT"):
        image = images.open_image(tmp_path / "a.ome.tif", scene=wanted)
        np.testing.assert_array_equal(image.read(), second)


def test_channels_of_an_ome_tiff_have_names(tmp_path, rng):
    values = drawn((2, 20, 30), np.uint8, rng)
    meta = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata=meta)
    with pytest.raises(InputError, match=r"2 channels: 0 \(DAPI\), 1 \(GFP\)"):
        images.open_image(tmp_path / "a.ome.tif")
    with pytest.raises(InputError, match=r"channel 'RFP' is not among the 2 channels"):
        images.open_image(tmp_path / "a.ome.tif", "RFP")
    with pytest.raises(InputError, match=r"channel '2' is not among the 2 channels"):
        images.open_image(tmp_path / "a.ome.tif", "2")
    image = images.open_image(tmp_path / "a.ome.tif", "GFP")
    assert image.channel == "GFP"
    np.testing.assert_array_equal(image.read(), values[1])


def test_frames_are_listed(tmp_path, rng):
    values = drawn((3, 20, 30), np.uint8, rng)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(InputError, match="has 3 frames: 0, 1, 2; fill in the column 'frame'"):
        images.open_image(tmp_path / "a.tif")


def test_a_choice_that_is_not_there_is_told_even_for_a_single_one(tmp_path, rng):
    tifffile.imwrite(tmp_path / "a.tif", drawn((20, 30), np.uint8, rng))
    images.open_image(tmp_path / "a.tif", channel="0", scene="0", frame="0")
    for column in ("channel", "scene", "frame"):
        with pytest.raises(InputError, match=f"{column} '7' is not among the 1 {column}s"):
            images.open_image(tmp_path / "a.tif", **{column: "7"})


# Bad input


def test_bad_files_are_told(tmp_path):
    cases = {
        "text.tif": (b"these are not pixels\n" * 50, "neither TIFF, PNG, OME-Zarr nor"),
        "empty.tif": (b"", "an empty file"),
        "magic.tif": (b"II*\0", "TIFF"),
        "nothing.tif": (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "TIFF"),
        "noise.tif": (b"II*\0" + bytes(range(256)) * 4, "TIFF"),
        "short.png": (b"\x89PNG\r\n\x1a\n\0", "truncated PNG"),
        "a.ims": (b"\x89HDF" + bytes(40), "damaged or unsupported Imaris"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        for read in (images.open_image, images.describe):
            with pytest.raises(InputError, match=f"{name}: .*{message}"):
                read(tmp_path / name)
    with pytest.raises(InputError, match=r"none.tif: no such file"):
        images.open_image(tmp_path / "none.tif")
    with pytest.raises(InputError, match="a folder that is not an OME-Zarr"):
        images.open_image(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ome", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_tiff_is_told_or_has_lost_no_pixel(tmp_path, layout, ome, share, rng):
    if ome and layout.get("metadata", 1) is None:
        pytest.skip("OME needs metadata")
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    values = rng.integers(0, 99, (5, 61, 83), np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", **layout)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    try:
        found = images.open_image(path).read()
    except InputError as error:
        assert re.search("truncated|damaged|unsupported|cannot be decoded", str(error))  # noqa: PT017
    else:
        assert share > 0.9
        np.testing.assert_array_equal(found, values)


def test_a_truncated_multi_page_tiff_is_told(tmp_path, rng):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(6):
            file.write(drawn((20, 30), np.uint8, rng), metadata=None)
    content = path.read_bytes()
    for end in range(100, len(content) - 4, 97):
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match=r"truncated|damaged"):
            images.open_image(path).read()


def test_a_tiff_that_is_cut_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((64, 64), np.uint16))
    image = images.open_image(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(InputError, match="the file became shorter"):
        image.read()


def test_a_truncated_png_is_told(tmp_path, rng):
    content = imagecodecs.png_encode(drawn((60, 60), np.uint8, rng))
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged or truncated PNG"):
        images.open_image(tmp_path / "a.png")


@pytest.mark.parametrize("at", [20, 60, -30, -3])
def test_a_damaged_png_is_told(tmp_path, at, rng):
    content = bytearray(imagecodecs.png_encode(drawn((60, 60), np.uint8, rng)))
    content[at] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="PNG"):
        images.open_image(tmp_path / "a.png")


def test_a_png_that_declares_too_many_pixels_is_refused_unread(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    content += struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"100000 x 100000 px.*at most 2,147,483,648"):
        images.open_image(tmp_path / "a.png")


def patched(path, tag, value):
    """Write a value over the first page's tag."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[tag].overwrite(value)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_absurd_declared_size_is_refused(tmp_path, compression, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn((61, 83), np.uint16, rng), compression=compression, metadata=None)
    patched(path, "ImageLength", 2**31 - 1)
    patched(path, "ImageWidth", 2**16 - 1)
    with pytest.raises(InputError, match=r"declares .* bytes|truncated|damaged"):
        images.open_image(path)


def test_a_huge_strip_is_refused_before_it_is_decoded(tmp_path, monkeypatch, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn((61, 83), np.uint16, rng), compression="zlib")
    monkeypatch.setattr(tiff, "LARGEST_SEGMENT", 1000)
    with pytest.raises(InputError, match="one strip or tile decodes to 10,126 bytes"):
        images.open_image(path).read()


def test_a_strip_without_data_is_told(tmp_path, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn((64, 64), np.uint8, rng), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        tag.overwrite([*tag.value[:-1], 0])
    with pytest.raises(InputError, match="has no data for strip or tile 3"):
        images.open_image(path).read()


def test_a_strip_at_a_senseless_place_is_told(tmp_path, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn((64, 64), np.uint8, rng), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["StripByteCounts"].overwrite(3.5, dtype="f")
    with pytest.raises(InputError, match=r"damaged TIFF: 3.5 bytes"):
        images.open_image(path).read()


def test_a_damaged_strip_is_told(tmp_path, rng):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn((64, 64), np.uint8, rng), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(offset + 10)
        file.write(b"\xff" * 100)
    with pytest.raises(InputError, match="cannot be decoded"):
        images.open_image(path).read()


def test_an_axis_of_length_zero_is_told(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(0, 8), dtype="u1", chunks=(1, 8))
    with pytest.raises(InputError, match="an axis has length zero"):
        images.open_image(tmp_path / "a.zarr")


def test_complex_pixels_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.complex64))
    with pytest.raises(InputError, match="pixels are complex64; need integers or floats"):
        images.open_image(tmp_path / "a.tif")


def test_more_than_five_axes_are_refused(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((2,) * 6, np.uint8))
    with pytest.raises(InputError, match=r"6 axes .* at most 5 are read"):
        images.open_image(tmp_path / "a.zarr")


def test_axes_without_a_meaning_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((2, 5, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"the meaning of 2 axes of shape .* is unknown"):
        images.open_image(tmp_path / "a.tif")
    zarr.create_array(tmp_path / "a.zarr", data=np.ones(9, np.uint8))
    with pytest.raises(InputError, match="need one y and one x axis"):
        images.open_image(tmp_path / "a.zarr")


def test_broken_ome_xml_is_told(tmp_path):
    description = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/"><Ima</OME>'
    tifffile.imwrite(
        tmp_path / "a.ome.tif", np.ones((8, 8), np.uint8), description=description, metadata=None
    )
    with pytest.raises(InputError, match="damaged"):
        images.open_image(tmp_path / "a.ome.tif")


# Other laws


@pytest.mark.parametrize("max_bytes", [1, 5000, 1 << 20])
@pytest.mark.parametrize("shape", [(61, 83), (7, 61, 83)], ids=["2d", "3d"])
def test_blocks_partition_the_image_and_stay_aligned(tmp_path, shape, max_bytes, rng):
    values = drawn(shape, np.uint16, rng)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    image = images.open_image(tmp_path / "a.tif")
    align = (3, 16, 16)[-len(shape) :]
    seen = np.zeros(shape, int)
    for box in image.blocks(align, max_bytes):
        seen[box] += 1
        assert all(side.start % n == 0 for side, n in zip(box, align, strict=True))
    assert np.all(seen == 1)


def test_describe_tells_the_headers(tmp_path, rng):
    values = drawn((2, 3, 20, 30), np.uint16, rng)
    meta = {"axes": "TCYX", "Channel": {"Name": ["A", "B", "C"]}, "PhysicalSizeX": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata=meta)
    facts = images.describe(tmp_path / "a.ome.tif")
    assert facts["shape"] == (2, 3, 20, 30)
    assert facts["axes"] == ("t", "c", "y", "x")
    assert (facts["dtype"], facts["channels"]) == ("uint16", ["A", "B", "C"])
    assert (facts["spatial_shape"], facts["n_frames"]) == ((20, 30), 2)
    assert facts["n_bytes"] == math.prod((20, 30)) * 2
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values[0, 0]))
    assert images.describe(tmp_path / "a.png")["shape"] == (20, 30)


def test_a_link_is_as_good_as_a_file(tmp_path, rng):
    values = drawn((20, 30), np.uint8, rng)
    tifffile.imwrite(tmp_path / "a.tif", values)
    (tmp_path / "b.tif").symlink_to("a.tif")
    np.testing.assert_array_equal(images.open_image(tmp_path / "b.tif").read(), values)


# Real files


def test_real_tiffs_are_read_as_tifffile_reads_them(shared_data, rng):
    cases = {
        "8b_5c_rat_hippocampal_neuron.tif": (3, "cyx", (0.16, 0.16)),
        "test_image.ome.tif": (1, "cyx", (1.0, 1.0)),
        "xyz_calibrated_16bit__golgi_bfa.tif": (None, "zyx", (0.3876, 0.351435, 0.351435)),
        "xyzc_16bit__dna_conf_wf.tif": (1, "zcyx", (0.4994126, 0.511878, 0.511878)),
    }
    for name, (channel, axes, pixel_um) in cases.items():
        path = shared_data / "formats" / name
        expected = tifffile.imread(path)
        if channel is not None:
            with pytest.raises(InputError, match="fill in the column 'channel'"):
                images.open_image(path)
            expected = np.take(expected, channel, axes.index("c"))
        image = images.open_image(path, channel=channel)
        np.testing.assert_allclose(image.pixel_um, pixel_um, rtol=1e-5)
        assert_reads(image, expected, rng)


def test_a_real_ome_zarr_without_its_level_0_is_refused(shared_data):
    for path in (shared_data / "formats/omezarr/v04").glob("*.zarr"):
        with pytest.raises(InputError, match="no chunk of this array is there"):
            images.open_image(path, channel="DAPI")


# Brightfield


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [3, 4])
def test_a_stain_is_unmixed_pixel_by_pixel(tmp_path, rng, dtype, samples):
    from skimage.color import hed_from_rgb, separate_stains

    values = rng.integers(1, np.iinfo(dtype).max, (30, 40, samples)).astype(dtype)
    more = {"extrasamples": ["unassalpha"]} if samples == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", **more)
    expected = separate_stains(values[..., :3] / np.iinfo(dtype).max, hed_from_rgb)
    for k, name in enumerate(("hematoxylin", "eosin", "dab")):
        image = images.open_image(tmp_path / "a.tif", channel=name)
        assert (image.channel, image.dtype) == (name, np.float32)
        np.testing.assert_allclose(image.read(), expected[..., k], rtol=1e-5, atol=1e-6)
        box = (slice(3, 17), slice(20, 40))
        np.testing.assert_array_equal(image.read(box), image.read()[box])
    assert "hematoxylin" in images.describe(tmp_path / "a.tif")["stains"]


def test_a_grey_image_has_no_stains(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((9, 9), np.uint8))
    with pytest.raises(InputError, match="channel 'hematoxylin' is not among"):
        images.open_image(tmp_path / "a.tif", channel="hematoxylin")
