import math

import numpy as np
import pytest

from iaunet import grid

GRIDS = [
    pytest.param((1, 1, 1), (4, 4, 4), (0, 0, 0), id="image smaller than a tile"),
    pytest.param((5, 33, 40), (4, 16, 16), (1, 4, 4), id="uneven last tiles"),
    pytest.param((7, 9), (3, 10), (9, 0), id="2d, halo wider than the core"),
    pytest.param((8, 8), (4, 4), (2, 2), id="2d, even"),
]


@pytest.mark.parametrize(("shape", "core", "halo"), GRIDS)
def test_cores_of_the_read_tiles_rebuild_the_image(shape, core, halo):
    image = np.arange(math.prod(shape)).reshape(shape)
    rebuilt = np.full_like(image, -1)
    for tile in grid.tiles(shape, core):
        read = grid.grow(tile.core, halo, shape)
        inner = grid.shift(tile.core, grid.origin(read))
        assert np.all(rebuilt[tile.core] == -1)
        rebuilt[tile.core] = image[read][inner]
    np.testing.assert_array_equal(rebuilt, image)


@pytest.mark.parametrize(("shape", "core", "halo"), GRIDS)
def test_a_tile_is_found_by_its_index(shape, core, halo):
    tiles = list(grid.tiles(shape, core))
    assert [tile.index for tile in tiles] == list(range(grid.n_tiles(shape, core)))
    assert all(grid.tile(shape, core, tile.index) == tile for tile in tiles)
    with pytest.raises(ValueError, match="not on a grid"):
        grid.tile(shape, core, len(tiles))


@pytest.mark.parametrize(("shape", "core", "halo"), GRIDS)
def test_the_tiles_that_meet_a_box_are_those_that_share_voxels_with_it(shape, core, halo, rng):
    for _ in range(20):
        ends = [sorted(rng.integers(0, n + 1, 2)) for n in shape]
        box = tuple(slice(int(a), int(max(b, a + 1))) for a, b in ends)
        box = tuple(slice(min(s.start, n - 1), s.stop) for s, n in zip(box, shape, strict=True))
        box = tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, shape, strict=True))
        expected = [
            tile.index
            for tile in grid.tiles(shape, core)
            if grid.intersection(tile.core, box) is not None
        ]
        assert grid.tiles_meeting(shape, core, box) == expected


@pytest.mark.parametrize(("count", "n_batches"), [(5, 2), (1, 4), (0, 3), (12, 12), (100, 7)])
def test_batches_are_contiguous_runs_of_nearly_equal_length(count, n_batches):
    runs = grid.batches(count, n_batches)
    assert [index for start, end in runs for index in range(start, end)] == list(range(count))
    lengths = [end - start for start, end in runs]
    assert len(runs) == n_batches
    assert max(lengths) - min(lengths) <= 1


def test_one_setting_of_sizes_serves_2d_and_3d():
    for sizes in ((256, 128), (32, 256, 128)):
        assert grid.sizes_of(sizes, (64, 64)) == (256, 128)
    assert grid.sizes_of((256, 128), (16, 64, 64)) == (16, 256, 128)
    assert grid.sizes_of((32, 256, 128), (16, 64, 64)) == (32, 256, 128)
