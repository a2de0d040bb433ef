"""Tiles that are labelled together: none is lost, and no window is too large."""

import math

import pytest

from iaunet import grid, windows

GRIDS = [
    pytest.param((1, 1, 1), (4, 4, 4), (0, 0, 0), id="image smaller than a tile"),
    pytest.param((5, 33, 40), (4, 16, 16), (1, 4, 4), id="uneven last tiles"),
    pytest.param((7, 9), (3, 10), (9, 0), id="2d, margin wider than the core"),
    pytest.param((50, 70), (8, 8), (6, 3), id="2d, many tiles"),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("shape", "core", "halo"), GRIDS)
def test_every_tile_is_in_one_window_and_windows_are_no_larger_than_allowed(
    shape, core, halo, threads, rng
):
    tiles = list(grid.tiles(shape, core))
    for first in range(0, len(tiles), 5):
        some = tiles[first : first + int(rng.integers(1, 1 + len(tiles)))]
        alone = max(math.prod(grid.box_shape(grid.grow(t.core, halo, shape))) for t in some)
        for most in (1, 100, 10**9):
            found = windows.gathered(
                some, shape, core, halo, halo, most_voxels=most, threads=threads
            )
            assert sorted(t.index for those in found for t in those) == [t.index for t in some]
            sizes = [
                math.prod(
                    grid.box_shape(grid.grow(grid.hull([t.core for t in those]), halo, shape))
                )
                for those in found
            ]
            assert max(sizes) <= max(most, alone)
        if threads == 1:
            assert sum(sizes) <= sum(
                math.prod(grid.box_shape(grid.grow(t.core, halo, shape))) for t in some
            )


def test_tiles_without_margin_are_left_to_as_many_threads_as_there_are():
    row = list(grid.tiles((8, 64), (8, 8)))
    found = windows.gathered(row, (8, 64), (8, 8), (0, 0), (0, 0), most_voxels=10**6, threads=4)
    assert len(found) == 4
    assert windows.gathered([], (8, 64), (8, 8), (0, 0), (0, 0), most_voxels=10**6, threads=4) == []


def test_a_small_image_is_one_window_whatever_the_threads_as_halves_read_most_of_it_twice():
    tiles = list(grid.tiles((64, 512, 512), (64, 256, 256)))
    near, far = (48, 81, 84), (97, 166, 172)
    args = tiles, (64, 512, 512), (64, 256, 256), near, far
    assert len(windows.gathered(*args, most_voxels=2**27, threads=2)) == 1
