"""What is predicted grows with what decides it, is bounded where the step is, and has room."""

import math
from dataclasses import replace

import pytest

from iaunet import cost, grid

SIZES = {
    "nuclei-2d": cost.Size(
        shape=(8192, 8192),
        grid_shape=(8192, 8192),
        itemsize=1,
        core=(1024, 1024),
        block=(1024, 1024),
        halo=(96, 96),
        width=16,
        cuts=True,
        asks=True,
        n_batches=1,
        n_parts=1,
    ),
    "nuclei-3d": cost.Size(
        shape=(192, 768, 768),
        grid_shape=(192, 768, 768),
        itemsize=2,
        core=(64, 256, 256),
        block=(64, 256, 256),
        halo=(24, 48, 48),
        width=16,
        cuts=True,
        asks=False,
        n_batches=2,
        n_parts=1,
    ),
}


def shaped(name, shape):
    return replace(SIZES[name], shape=shape, grid_shape=shape)


@pytest.mark.parametrize(
    ("name", "shape", "measured_mb"),
    [
        ("nuclei-2d", (512, 512), 514),
        ("nuclei-2d", (3072, 3072), 1061),
        ("nuclei-3d", (48, 160, 160), 973),
        ("nuclei-3d", (26, 768, 768), 1647),
        ("nuclei-3d", (64, 352, 352), 2736),
        ("nuclei-3d", (192, 768, 768), 3020),
    ],
)
def test_the_network_is_given_what_one_block_was_measured_to_take_and_not_twice_that(
    name, shape, measured_mb
):
    found = cost.peak_mb("infer", shaped(name, shape))
    assert measured_mb <= found <= 2 * measured_mb


@pytest.mark.parametrize(
    ("step", "of_8192_px", "of_3d"),
    [("cluster", 1010, 291), ("stitch", 350, 272), ("measure", 429, 282), ("report", 304, 288)],
)
def test_the_other_steps_are_given_what_was_measured_and_not_twice_that(step, of_8192_px, of_3d):
    """27,920 objects in 8192 x 8192 px, and 113 in 48 x 160 x 160 voxels of the demo."""
    for size, objects, measured_mb in (
        (SIZES["nuclei-2d"], 27_920, of_8192_px),
        (shaped("nuclei-3d", (48, 160, 160)), 113, of_3d),
    ):
        rates = replace(cost.RATES[len(size.shape)], objects=objects / size.voxels)
        assert measured_mb <= cost.peak_mb(step, size, rates=rates) <= 2 * measured_mb


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("step", cost.STEPS)
def test_a_larger_image_never_takes_less_and_requests_have_room(name, step):
    small = replace(shaped(name, tuple(n // 4 for n in SIZES[name].shape)), n_parts=2)
    large = replace(SIZES[name], n_parts=2)
    for size in (small, large):
        assert cost.mem_mb(step, size) >= cost.peak_mb(step, size) + cost.MARGIN_MB
        seconds = cost.cpu_seconds(step, size) / cost.n_jobs(step, size)
        assert 60 * cost.runtime_min(step, size) > 2 * seconds
    assert cost.peak_mb(step, small) <= cost.peak_mb(step, large)
    assert cost.cpu_seconds(step, small) <= cost.cpu_seconds(step, large)


@pytest.mark.parametrize("name", SIZES)
def test_the_memory_of_the_network_does_not_depend_on_the_image_beyond_a_few_blocks(name):
    size = shaped(name, tuple(100 * n for n in SIZES[name].shape))
    assert cost.peak_mb("infer", size) == cost.peak_mb("infer", SIZES[name])
    two, one = (cost.peak_mb("infer", size, threads=n) for n in (2, 1))
    asked = cost.asked(size)["infer"]
    assert asked["mem_mb_per_thread"] >= two - one
    assert asked["mem_mb"] + asked["mem_mb_per_thread"] == cost.mem_mb("infer", size, threads=2)


@pytest.mark.parametrize("name", SIZES)
def test_clustering_is_given_memory_for_a_window_or_for_the_tile_that_is_larger(name):
    size = shaped(name, tuple(20 * n for n in SIZES[name].shape))
    one, two = (cost.peak_mb("cluster", size, threads=n) for n in (1, 2))
    window = two - one
    large = replace(size, core=tuple(8 * n for n in size.core))
    factor = math.prod(large.core) / cost.MVOXEL / cost.LABELLED_MVOXEL
    one, two = (cost.peak_mb("cluster", large, threads=n) for n in (1, 2))
    assert two - one == pytest.approx(max(1.0, factor) * window)
    assert name == "nuclei-2d" or factor > 10


def test_blocks_are_computed_with_their_halo_cut_at_the_image():
    size = replace(
        SIZES["nuclei-2d"], grid_shape=(100, 70), block=(32, 64), core=(32, 64), halo=(8, 16)
    )
    windows = [
        math.prod(grid.box_shape(grid.grow(tile.core, size.halo, size.grid_shape)))
        for tile in grid.tiles(size.grid_shape, size.block)
    ]
    assert size.computed_voxels * cost.MVOXEL == pytest.approx(sum(windows))
    assert size.window_voxels * cost.MVOXEL >= max(windows)


def test_rates_are_those_of_the_records_and_the_middle_of_several():
    steps = [
        {"step": "tile", "shape": [1000, 2000], "grid_shape": [500, 1000], "cpu_seconds": 12}
        | {"output_bytes": 3_000_000},
        {"step": "infer", "device": "cpu", "network_cpu_seconds": 4, "voxels_computed": 800_000}
        | {"voxels_decoded": 800_000}
        | {"network_seconds": 9, "output_bytes": 1_000_000},
        {"step": "cluster", "clustering_seconds": 3.0, "n_objects": 600}
        | {"output_bytes": 100_000},
    ]
    rates = cost.measured(steps, "here")
    assert rates.network == 5
    assert rates.cluster == 6
    assert (rates.objects, rates.image_bytes, rates.output_bytes) == (300, 1.5, 2)
    assert (rates.zoom, rates.source) == ((0.5, 0.5), "here")
    slower, faster = replace(rates, network=50), replace(rates, network=1)
    assert cost.middle([slower, rates, faster]) == rates
    size = replace(SIZES["nuclei-2d"], shape=(100, 300), grid_shape=(100, 300))
    assert cost.on_grid(size, rates).grid_shape == (50, 150)
    assert cost.on_grid(replace(size, asks=False), rates).grid_shape == (100, 300)
    steps[1]["device"] = "cuda"
    assert cost.measured(steps, "").network == 9 / 0.8
    assert cost.measured(steps[:2], "") is None
    assert cost.measured([*steps[:2], {"step": "cluster"}], "") is None
