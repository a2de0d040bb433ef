"""The scale benchmark draws what infer.py would leave, of any size, and all steps take it."""

import importlib
import importlib.util
import json

import numpy as np
import pytest

from iaunet import grid, omezarr, outputs, tiling
from runs import REPOSITORY


def load(name):
    """Return a module of the benchmark; its folder is on no path."""
    path = REPOSITORY / "benchmarks/scale" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", [(1500, 2200), (160, 520, 530)], ids=["2d", "3d"])
def test_a_drawn_image_is_one_tile_repeated(tmp_path, shape):
    drawn = load("drawn")
    folder = tmp_path / "x"
    n_batches = drawn.write(folder, shape, 5, {"name": "m", "sha256": "0"})
    tiles = tiling.read(folder / "tiles.json", ("core", "batches"))
    reader = outputs.Reader([folder / f"outputs/{k}.zarr" for k in range(n_batches)], tiles)
    core = tiles["core"]
    first = reader.read("fg", grid.tile(shape, core, 0).core)
    assert (first > 0).any()
    image = omezarr.open_level(folder / "image.zarr")
    pixels = image[grid.tile(shape, core, 0).core]
    for tile in grid.tiles(shape, core):
        same = tuple(slice(0, n) for n in grid.box_shape(tile.core))
        np.testing.assert_array_equal(reader.read("fg", tile.core), first[same])
        np.testing.assert_array_equal(image[tile.core], pixels[same])
    assert json.loads((folder / "tiles.json").read_text())["n_batches"] == n_batches


@pytest.mark.parametrize("step", ["cluster", "stitch", "measure"])
def test_the_options_of_the_jobs_are_those_of_the_steps(tmp_path, step):
    options = load("drawn").options(tmp_path, tmp_path / "m.safetensors", 3)
    assert len(options[step]) == (3 if step == "cluster" else 1)
    for words in options[step]:
        importlib.import_module(step).parse_args([str(word) for word in words])
