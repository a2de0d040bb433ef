import json

import numpy as np
import pytest
import tifffile

import infer
import tile
from iaunet import outputs
from iaunet.errors import InputError
from nets import save_model


@pytest.fixture
def tiled(tmp_path, rng):
    """An image that was tiled into six tiles and two batches, and its model."""
    image, model = tmp_path / "a.tif", save_model(tmp_path / "m.safetensors", 2)
    tifffile.imwrite(image, rng.integers(0, 999, (90, 130)).astype(np.uint16))
    tile.main(
        [
            *("--image", str(image), "--name", "a", "--model", str(model)),
            *("--core-px", "48", "48", "--halo", "exact", "--batches", "2"),
            *(
                "--diameter-px",
                "native",
                "--percentiles",
                "1",
                "99.8",
                "--output",
                str(tmp_path / "image.zarr"),
            ),
            *("--tiles", str(tmp_path / "tiles.json")),
        ]
    )
    return tmp_path


def run(folder, batch, threads=1, **change):
    options = {
        "store": folder / "image.zarr",
        "tiles": folder / "tiles.json",
        "model": folder / "m.safetensors",
        "batch": batch,
        "device": "cpu",
        "backend": "auto",
        "threads": threads,
        "output": folder / f"{threads}-{batch}.zarr",
        "record": folder / "record.json",
    } | change
    infer.main([f"--{name}={value}" for name, value in options.items()])
    return options["output"]


def everything(paths, tiles):
    reader = outputs.Reader(paths, tiles)
    box = tuple(slice(0, n) for n in tiles["shape"])
    return {name: reader.read(name, box) for name in ("fg", "seed", "off", "lsig")}


def test_two_batches_hold_the_whole_image_and_threads_change_nothing(tiled):
    tiles = json.loads((tiled / "tiles.json").read_text())
    one = everything([run(tiled, k) for k in range(2)], tiles)
    other = everything([run(tiled, k, threads=3) for k in range(2)], tiles)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    assert one["fg"].shape == (90, 130)
    assert one["fg"].any()


def test_the_record_says_how_much_was_computed(tiled):
    run(tiled, 0)
    record = json.loads((tiled / "record.json").read_text())
    assert record["n_tiles"] == 3
    assert record["voxels"] == 48 * 130
    assert record["voxels_computed"] >= record["voxels"]
    assert record["device"] == "cpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 2}, r"--batch: found 2, .* has batches 0 to 1"),
        ({"device": "cuda:7"}, "--device: .*'cuda:7' is not there"),
        ({"device": "tpu"}, "--device: .*use auto, cpu"),
        ({"threads": 0}, "--threads: found 0"),
    ],
)
def test_options_that_cannot_be_met_are_named(tiled, change, message):
    options = {"batch": 0} | change
    with pytest.raises(InputError, match=message):
        run(tiled, **options)
    assert not list(tiled.glob("*-*.zarr"))


def test_a_halo_below_the_exact_one_is_checked_on_a_sample(tiled):
    run(tiled, 0)
    record = json.loads((tiled / "record.json").read_text())
    assert (record["halo_checked"], record["halo_changed"]) == (0, 0)
    tiles = json.loads((tiled / "tiles.json").read_text())
    tiles["halo"] = [8, 8]
    del tiles["checksum"]
    (tiled / "tiles.json").write_text(json.dumps(tiles))
    run(tiled, 1)
    record = json.loads((tiled / "record.json").read_text())
    assert 0 < record["halo_changed"] < record["halo_checked"]


def test_another_model_than_the_image_was_tiled_for_is_refused(tiled):
    save_model(tiled / "m.safetensors", 2, seed=5)
    with pytest.raises(InputError, match="another model than the image was tiled for"):
        run(tiled, 0)


def test_a_model_of_another_dimension_is_refused(tiled):
    save_model(tiled / "m.safetensors", 3)
    with pytest.raises(InputError, match="the model is 3D, the image is 2D"):
        run(tiled, 0)
