import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v05 import Image as ValidImage

import tile
from iaunet import halving, images, omezarr
from iaunet.errors import InputError
from runs import write_header_model

STEP = Path(tile.__file__)


def write_model(path, ndim, **more):
    values = {"stride": 8, "radius": 21, "block": 60}
    sizes = {key: [value] * ndim for key, value in values.items()}
    return write_header_model(path, ndim, **(sizes | more))


@pytest.fixture
def run(tmp_path):
    """Run the step on an array or file; return tiles.json and the folder of its outputs."""

    def start(image, *more, ndim=None, core=("auto",), halo=("exact",), batches=2, name="one"):
        path = image
        if isinstance(image, np.ndarray):
            path, ndim = tmp_path / "image.tif", ndim or image.ndim
            tifffile.imwrite(path, image, photometric="minisblack", metadata=None)
        model = write_model(tmp_path / "drawn.safetensors", ndim or 2)
        out = tmp_path / name
        options = {
            "--image": path,
            "--name": "a",
            "--model": model,
            "--batches": batches,
            "--output": out / "image.zarr",
            "--tiles": out / "tiles.json",
            "--record": out / "record.json",
        }
        argv = [str(word) for pair in options.items() for word in pair]
        argv += ["--core-px", *map(str, core), "--halo", *map(str, halo)]
        if "--percentiles" not in more:
            argv += ["--percentiles", "1", "99.8"]
        if "--diameter-px" not in more:
            argv += ["--diameter-px", "native"]
        tile.main([*argv, *map(str, more)])
        return json.loads((out / "tiles.json").read_text()), out

    return start


@pytest.mark.parametrize("shape", [(300, 410), (5, 130, 150)], ids=["2d", "3d"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_the_store_holds_the_image_and_its_limits(run, shape, dtype, rng):
    image = (rng.gamma(2, 40, shape)).astype(dtype)
    tiles, out = run(image)
    np.testing.assert_array_equal(omezarr.open_level(out / "image.zarr")[...], image)
    np.testing.assert_allclose(
        tiles["limits"], np.percentile(image.astype(np.float64), (1, 99.8)), rtol=1e-12
    )
    assert (tiles["shape"], tiles["dtype"]) == (list(shape), str(np.dtype(dtype)))
    assert (tiles["constant"], tiles["exact_halo"]) == (False, True)
    group = zarr.open_group(out / "image.zarr", mode="r")
    ValidImage.from_zarr(group)
    (shown,) = Omero.model_validate(group.attrs["ome"]["omero"]).channels
    window = [shown.window.min, shown.window.start, shown.window.end, shown.window.max]
    assert window == [image.min(), *tiles["limits"], image.max()]
    record = json.loads((out / "record.json").read_text())
    assert record["step"] == "tile"


def test_tiles_and_batches_cover_the_grid(run, rng):
    tiles, _ = run(rng.integers(0, 9, (300, 410), np.uint8), batches=5)
    assert (tiles["core"], tiles["halo"], tiles["stride"]) == ([64, 64], [24, 24], [8, 8])
    assert tiles["n_tiles"] == 5 * 7
    assert tiles["batches"] == [[k * 7, k * 7 + 7] for k in range(5)]


@pytest.mark.parametrize(
    ("core", "halo", "expected_core", "expected_halo", "exact"),
    [
        (("auto",), ("fast",), [64, 64], [16, 16], False),
        ((128, 40), ("exact",), [128, 40], [24, 24], True),
        ((16, 128, 40), (4, 8, 16), [128, 40], [8, 16], False),
        ((64, 64), (30, 0), [64, 64], [32, 0], False),
        ((64, 64), (24, 25), [64, 64], [24, 32], True),
    ],
)
def test_core_and_halo_are_as_asked(run, core, halo, expected_core, expected_halo, exact):
    tiles, _ = run(np.arange(100, dtype=np.uint8).reshape(10, 10), core=core, halo=halo)
    assert (tiles["core"], tiles["halo"]) == (expected_core, expected_halo)
    assert tiles["exact_halo"] is exact


@pytest.mark.parametrize(
    ("core", "halo", "message"),
    [
        ((60, 64), ("exact",), r"core_px \[60, 64\] needs positive.*nearest is \[64, 64\]"),
        ((0, 64), ("exact",), "needs positive multiples"),
        ((64, 64), (64, 8), r"halo \[64, 8\] must be at least 0 and smaller than the core"),
        ((64, 64), (-1, 8), "must be at least 0"),
        ((64,), ("exact",), "--core-px: found '64', needs .z. y x"),
        (("auto",), (8, 8, 8, 8), "--halo: found '8 8 8 8', needs .z. y x"),
    ],
)
def test_a_wrong_core_or_halo_is_told(run, core, halo, message):
    with pytest.raises(InputError, match=message):
        run(np.zeros((10, 10), np.uint8), core=core, halo=halo)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 70), (2, 3, 4)])
def test_an_image_smaller_than_the_stride_works(run, shape, rng):
    image = rng.integers(0, 255, shape, np.uint8)
    tiles, out = run(image)
    assert tiles["n_tiles"] == -(-shape[-1] // 64)
    np.testing.assert_array_equal(omezarr.open_level(out / "image.zarr")[...], image)


def test_the_same_image_gives_the_same_bytes(run, rng):
    image = rng.normal(size=(300, 1200)).astype(np.float32)
    one, first = run(image, name="one")
    other, second = run(image, name="other")
    assert one == other
    assert contents(first / "image.zarr") == contents(second / "image.zarr")


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_limits_do_not_depend_on_how_the_file_is_stored(run, tmp_path, rng):
    image = rng.normal(size=(500, 700)).astype(np.float32)
    expected, _ = run(image)
    layouts = [{"tile": (64, 64)}, {"rowsperstrip": 3, "compression": "zlib"}]
    for index, layout in enumerate(layouts):
        tifffile.imwrite(tmp_path / f"{index}.tif", image, **layout)
        found, _ = run(tmp_path / f"{index}.tif", ndim=2, name=f"other{index}")
        assert found["limits"] == expected["limits"]


@pytest.mark.parametrize(
    ("shape", "spacing"), [((301, 777), 1), ((37, 149, 301), 1), ((37, 149, 301), 4)]
)
def test_every_level_is_the_mean_of_the_one_before(run, shape, spacing, rng, monkeypatch):
    monkeypatch.setattr(omezarr, "SHARD_PX", {2: (64, 64), 3: (4, 32, 32)})
    monkeypatch.setattr(omezarr, "INNER_PX", {2: (32, 32), 3: (4, 16, 16)})
    monkeypatch.setattr(omezarr, "SMALLEST_LEVEL_PX", 32)
    monkeypatch.setattr(images, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(images, "ROWS_BYTES", 20_000)
    image = rng.integers(0, 60_000, shape, np.uint16)
    sizes = dict(zip("zyx"[-len(shape) :], (spacing, 1, 1)[-len(shape) :], strict=True))
    _, out = run(image, *(f"--pixel-um-{axis}={um}" for axis, um in sizes.items()))
    store, fine = out / "image.zarr", image
    for level, lengths in enumerate(omezarr.read_meta(store).levels):
        if level:
            factors = [1 if a == b else 2 for a, b in zip(fine.shape, lengths, strict=True)]
            fine = halving.halved_mean(fine, factors)
        np.testing.assert_array_equal(omezarr.open_level(store, level)[...], fine)
    assert level > 1


def test_a_constant_image_succeeds_with_a_warning(run):
    tiles, _ = run(np.full((30, 40), 7, np.uint16))
    assert (tiles["constant"], tiles["limits"]) == (True, [7, 7])
    assert any("constant: every pixel is 7" in text for text in tiles["warnings"])


def test_nearly_all_background_is_a_warning(run):
    image = np.zeros((100, 100), np.uint16)
    image[3, 3] = 500
    tiles, _ = run(image)
    assert (tiles["constant"], tiles["limits"]) == (False, [0, 500])
    assert any("coincide" in text for text in tiles["warnings"])


def test_pixel_size_comes_from_the_options_first(run, tmp_path):
    tiles, _ = run(np.zeros((8, 8), np.uint8))
    assert tiles["pixel_um"] is None
    assert any("add pixel_um_y, pixel_um_x" in text for text in tiles["warnings"])
    path = tmp_path / "a.ome.tif"
    meta = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), metadata=meta)
    tiles, out = run(path, "--pixel-um-y", "0.25", name="two")
    assert tiles["pixel_um"] == [0.25, 0.5]
    assert omezarr.read_meta(out / "image.zarr").pixel_um == (0.25, 0.5)


def test_what_was_read_is_written_down(run, tmp_path, rng):
    path = tmp_path / "a.ome.tif"
    meta = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(path, rng.integers(0, 9, (2, 30, 40), np.uint8), metadata=meta)
    tiles, out = run(path, "--channel", "GFP")
    source = tiles["source"]
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source["bytes"], source["path"]) == (path.stat().st_size, str(path))
    assert (source["format"], source["channel"], tiles["channel"]) == ("OME-TIFF", "GFP", "GFP")
    assert omezarr.read_meta(out / "image.zarr").channel == "GFP"


def test_64_bit_integers_that_fit_are_stored_in_32(run):
    image = np.array([[0, 2**31 - 1], [-5, 7]], np.int64)
    tiles, out = run(image)
    assert tiles["dtype"] == "int32"
    np.testing.assert_array_equal(omezarr.open_level(out / "image.zarr")[...], image)
    with pytest.raises(InputError, match="beyond the range of int32"):
        run(image + 1, name="two")


def test_nan_and_infinity_are_counted_and_refused(run, tmp_path):
    image = np.ones((300, 300), np.float64)
    image[[5, 200], 7] = np.nan
    image[299, 299] = -np.inf
    with pytest.raises(InputError, match=r"image.tif: 2 NaN values and 1 that are infinite"):
        run(image)
    assert not list((tmp_path / "one").iterdir())


def test_a_float_beyond_32_bits_is_refused(run):
    with pytest.raises(InputError, match="1 that are infinite or beyond 32-bit floats"):
        run(np.array([[1.0, 1e300]]))


def test_a_model_of_another_dimension_is_told(run):
    with pytest.raises(InputError, match=r"has 3 axes \(z y x.*drawn.safetensors needs 2"):
        run(np.zeros((3, 8, 8), np.uint8), ndim=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pixel-um-x", "0"), "pixel_um_x: found 0.0, needs a positive number"),
        (("--pixel-um-y", "nan"), "pixel_um_y: found nan"),
        (("--percentiles", "99", "1"), "percentiles 99 1 need 0 <= low < high <= 100"),
        (("--percentiles", "1", "nan"), "percentiles 1 nan"),
        (("--channel", "3"), "channel '3' is not among the 1 channels"),
    ],
)
def test_wrong_options_are_told(run, options, message):
    with pytest.raises(InputError, match=message):
        run(np.zeros((8, 8), np.uint8), *options)


def test_the_input_is_not_touched(run, tmp_path, rng):
    path = tmp_path / "input.tif"
    tifffile.imwrite(path, rng.integers(0, 9, (30, 40), np.uint8))
    path.chmod(0o444)
    before = path.read_bytes(), path.stat().st_mtime_ns
    (tmp_path / "link.tif").symlink_to(path)
    run(tmp_path / "link.tif")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    "more",
    ["--batches 0", "--percentiles 99 1", "--core-px auto 128", "--pixel-um-x nan", "--core-px no"],
)
def test_a_wrong_option_has_status_2(tmp_path, more):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20), np.uint8))
    model = write_model(tmp_path / "m.safetensors", 2)
    words = f"--image a.tif --name a --model {model} --core-px auto --halo exact --batches 1"
    words += f" --diameter-px native --percentiles 1 99 --output out.zarr --tiles tiles.json {more}"
    done = subprocess.run(
        [sys.executable, STEP, *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_is_one_line_and_status_1(tmp_path):
    (tmp_path / "a.tif").write_text("not an image")
    model = write_model(tmp_path / "m.safetensors", 2)
    words = f"--image a.tif --name a --model {model} --core-px auto --halo exact --batches 1"
    words += " --diameter-px native --percentiles 1 99 --output out.zarr --tiles tiles.json"
    done = subprocess.run(
        [sys.executable, STEP, *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: a.tif: neither TIFF, PNG, OME-Zarr nor a format of docs/formats.md; convert it to "
        "OME-TIFF or OME-Zarr, for instance with bioformats2raw or Fiji, or install the plug-in of "
        "bioio that reads it\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "m.safetensors"}


@pytest.mark.parametrize("kind", ["tiles", "pages"])
def test_peak_memory_does_not_grow_with_the_image(tmp_path, kind):
    peaks = []
    for size in (1, 8):
        path = tmp_path / f"{size}.tif"
        plane = np.arange(512 * 512, dtype=np.uint16).reshape(512, 512)
        if kind == "tiles":
            shape, count, layout = (1024 * size, 4096), 16 * size, {"tile": (512, 512)}
        else:
            shape, count, layout = (16 * size, 512, 512), 16 * size, {}
        tifffile.imwrite(
            path,
            (plane for _ in range(count)),
            shape=shape,
            dtype=np.uint16,
            photometric="minisblack",
            **layout,
        )
        model = write_model(tmp_path / "m.safetensors", len(shape))
        words = f"--image {path} --name a --model {model} --core-px auto --halo exact --batches 1"
        words += f" --diameter-px native --percentiles 1 99 --output {tmp_path}/{size}.zarr"
        words += f" --tiles {tmp_path}/t.json --record {tmp_path}/r.json"
        subprocess.run([sys.executable, STEP, *words.split()], check=True, capture_output=True)
        peaks.append(json.loads((tmp_path / "r.json").read_text())["peak_memory_mb"])
    assert peaks[1] < peaks[0] + 30, peaks


def test_a_real_volume_keeps_its_values_and_pixel_size(run, shared_data):
    path = shared_data / "formats/xyz_calibrated_16bit__golgi_bfa.tif"
    tiles, out = run(path, ndim=3)
    np.testing.assert_array_equal(
        omezarr.open_level(out / "image.zarr")[...], tifffile.imread(path)
    )
    np.testing.assert_allclose(tiles["pixel_um"], (0.3876, 0.351435, 0.351435), rtol=1e-5)


def test_what_is_said_of_a_model_is_a_warning(run):
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    tiles, _ = run(image, "--percentiles", 0, 100)
    (warning,) = [text for text in tiles["warnings"] if "percentiles" in text]
    assert "made for limits at the percentiles [1, 99.8], used are [0.0, 100.0]" in warning
