"""Network outputs and an image of any size, in seconds and a few megabytes.

One tile is drawn, of objects on a torus: what leaves it at one side comes in at the other. The
file of each tile is a hard link to that of the first, so that the whole image is the tile
repeated, and objects cross the faces of tiles as in a real one.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

from iaunet import fixedpoint, grid, omezarr, outputs, plan

CORE_PX = {2: (1024, 1024), 3: (128, 256, 256)}
ID_STRIDE = {2: (4, 4), 3: (2, 4, 4)}
RADIUS_PX = {2: (8, 20), 3: (5, 9)}
N_CHANNELS = 16
SIGMA_SHARE = 0.6


def torus(
    core: Sequence[int], n_objects: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return network outputs and the image of one tile with about `n_objects` ellipsoids."""
    ndim = len(core)
    cells = tuple(n // step for n, step in zip(core, ID_STRIDE[ndim], strict=True))
    drawn = {
        "fg": np.zeros(core, fixedpoint.DTYPE["fg"]),
        "seed": np.zeros(core, fixedpoint.DTYPE["seed"]),
        "off": np.zeros((ndim, *core), fixedpoint.DTYPE["off"]),
        "lsig": np.zeros((ndim, *core), fixedpoint.DTYPE["lsig"]),
        "id": rng.integers(-127, 128, (N_CHANNELS, *cells)).astype(fixedpoint.DTYPE["id"]),
    }
    image = rng.poisson(100, core).astype(np.uint16)
    for centre in rng.uniform(0, core, (n_objects, ndim)):
        radius = rng.uniform(*RADIUS_PX[ndim], ndim)
        reach = np.ceil(radius).astype(int)
        around = np.stack(
            np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1
        )
        voxel = np.rint(centre).astype(int) + around
        away = (voxel - centre) / radius
        inside = (away**2).sum(-1) < 1
        place = tuple((voxel[inside] % np.array(core)).T)
        near = 1 - np.sqrt((away[inside] ** 2).sum(-1))
        free = drawn["fg"][place] == 0
        place = tuple(axis[free] for axis in place)
        drawn["fg"][place] = 230
        drawn["seed"][place] = (20 + near[free] * 40_000).astype(drawn["seed"].dtype)
        image[place] += 1000
        for axis in range(ndim):
            pull = np.rint(16 * (centre[axis] - voxel[inside][free, axis]))
            drawn["off"][axis][place] = pull
            level = round(fixedpoint.SCALE["lsig"] * np.log(SIGMA_SHARE * radius[axis]))
            drawn["lsig"][axis][place] = level
    return drawn, image


def write(folder: Path, shape: Sequence[int], n_objects: int, model: Mapping) -> int:
    """Write ``tiles.json``, ``image.zarr`` and ``outputs/K.zarr``; return the number of batches.

    Parameters
    ----------
    shape : at least one shard of the image along each axis
    n_objects : per tile
    model : ``name`` and ``sha256``
    """
    ndim, core = len(shape), CORE_PX[len(shape)]
    runs = grid.batches(grid.n_tiles(shape, core), plan.n_batches(shape, core, None))
    drawn, image = torus(core, n_objects, np.random.default_rng(0))
    folder.mkdir(parents=True)
    tiles = {
        "image": folder.name,
        "shape": list(shape),
        "axes": list("zyx"[-ndim:]),
        "core": list(core),
        "n_tiles": grid.n_tiles(shape, core),
        "n_batches": len(runs),
        "batches": runs,
        "pixel_um": [0.5] * ndim,
        "channel": "0",
        "source": {"sha256": "0" * 64},
        "model": dict(model),
    }
    (folder / "tiles.json").write_text(json.dumps(tiles))
    _write_image(folder, shape, image)
    one = outputs.create(folder / "one.zarr", core, core, ID_STRIDE[ndim], N_CHANNELS)
    one.write(grid.tile(core, core, 0), drawn)
    one.close()
    stats = zarr.open_group(folder / "one.zarr", mode="r").attrs["iaunet"]["stats"]
    for batch, run in enumerate(runs):
        path = folder / "outputs" / f"{batch}.zarr"
        store = outputs.create(path, shape, core, ID_STRIDE[ndim], N_CHANNELS)
        for name in drawn:
            lead = ["0"] * (drawn[name].ndim - ndim)
            source = folder.joinpath("one.zarr", name, "c", *lead, *["0"] * ndim)
            for index in range(*run):
                place = np.unravel_index(index, grid.grid_shape(shape, core))
                _link(source, path.joinpath(name, "c", *lead, *map(str, place)))
        store.close(tiles=list(range(*run)), stats=stats)
    return len(runs)


def options(folder: Path, model: Path, n_batches: int) -> dict[str, list[list[object]]]:
    """Return the options of the steps after the network, one list of words per job."""
    ends = {
        "labels": "zarr",
        "tables": "parquet",
        "sightings": "sightings.parquet",
        "contacts": "contacts.parquet",
    }
    (folder / "labels").mkdir()
    made = {
        name: [folder / "labels" / f"{batch}.{end}" for batch in range(n_batches)]
        for name, end in ends.items()
    }
    stores = [folder / "outputs" / f"{batch}.zarr" for batch in range(n_batches)]
    result, table, seams = folder / "drawn.ome.zarr", folder / "ids.parquet", folder / "seams.csv"
    tiles = ["--tiles", folder / "tiles.json"]
    of_all = [word for name, paths in made.items() for word in (f"--{name}", *paths)]
    return {
        "cluster": [
            [
                *tiles, "--model", model, "--outputs", *stores, "--batch", k,
                "--output", made["labels"][k], "--table", made["tables"][k],
                "--sightings", made["sightings"][k], "--contacts", made["contacts"][k],
            ]
            for k in range(n_batches)
        ],
        "stitch": [
            [
                *tiles, "--store", folder / "image.zarr", *of_all, "--output", result,
                "--identities", table, "--seams", seams,
            ]
        ],
        "measure": [
            [
                *tiles, "--store", result, "--identities", table, "--seams", seams,
                "--output-csv", folder / "objects.csv",
                "--output-parquet", folder / "objects.parquet",
                "--metrics", folder / "metrics.json", "--provenance", folder / "provenance.json",
            ]
        ],
    }  # fmt: skip


def _write_image(folder: Path, shape: Sequence[int], image: np.ndarray) -> None:
    """Write the image; its coarser levels stay empty."""
    axes = "zyx"[-len(shape) :]
    made = {"version": "drawn", "channel": "0"}
    spacing = [0.5] * len(shape)
    path = folder / "image.zarr"
    omezarr.create_image(path, shape, axes, image.dtype, spacing, "drawn", made)
    array = omezarr.open_level(path)
    period = [math.lcm(n, side) for n, side in zip(image.shape, array.shards, strict=True)]
    omezarr.create_image(folder / "one-image.zarr", period, axes, image.dtype, spacing, "", made)
    one = omezarr.open_level(folder / "one-image.zarr", mode="r+")
    repeated = np.tile(image, [n // m for n, m in zip(period, image.shape, strict=True)])
    omezarr.write_box(one, tuple(slice(0, n) for n in period), repeated)
    counts = grid.grid_shape(period, array.shards)
    for place in np.ndindex(*grid.grid_shape(shape, array.shards)):
        source = [str(k % n) for k, n in zip(place, counts, strict=True)]
        _link(
            folder.joinpath("one-image.zarr", "0", "c", *source),
            path.joinpath("0", "c", *map(str, place)),
        )


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)
