"""Tiles at positions of a stage are one plane."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet import mosaics

TILE = (4, 5)


def painted(mosaic, tiles):
    """Return the whole plane, tile by tile."""
    plane = np.zeros(mosaic.shape, tiles.dtype)
    for (y, x), tile in zip(mosaic.corners_px, tiles, strict=True):
        plane[y : y + TILE[0], x : x + TILE[1]] = tile
    return plane


@given(
    places=st.lists(
        st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=6, unique=True
    ),
    data=st.data(),
)
def test_any_window_is_that_of_the_whole_plane_and_reads_only_its_tiles(places, data):
    mosaic = mosaics.by_stage(np.array(places, float), (1, 1), TILE, flipped=(0, 0), swapped=False)
    tiles = np.arange(1, 1 + 20 * len(places)).reshape(-1, *TILE)
    whole = painted(mosaic, tiles)
    ends = [
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
        for n in mosaic.shape
    ]
    window = tuple(slice(*pair) for pair in ends)
    read = []
    out = np.full([b - a for a, b in ends], -1)
    mosaic.fill(out, window, lambda k: read.append(k) or tiles[k])
    np.testing.assert_array_equal(out, whole[window])
    seen = {k for k, tile in enumerate(tiles) if np.isin(tile, out).any()}
    assert seen <= set(read)
    for k in read:
        corner = mosaic.corners_px[k]
        assert all(corner[i] < ends[i][1] and ends[i][0] < corner[i] + TILE[i] for i in (0, 1))


@pytest.mark.parametrize("flipped", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_stage_that_runs_otherwise_gives_the_same_plane(flipped, swapped):
    corners = np.array([[0, 0], [0, 4], [3, 1], [6, 8]])
    step = np.array([0.5, 0.25])
    stage = corners * step
    if swapped:
        stage = stage[:, ::-1]
    stage = np.where(flipped, -stage, stage) + 1000
    mosaic = mosaics.by_stage(stage, step, TILE, flipped=flipped, swapped=swapped)
    np.testing.assert_array_equal(mosaic.corners_px, corners)
    assert mosaic.shape == (10, 13)


@pytest.mark.parametrize(
    ("places", "step", "text"),
    [
        ([[0, 0], [0, 0]], (1, 1), "one position"),
        ([[0, 0], [np.nan, 5]], (1, 1), "no numbers"),
        ([[0, 0], [0, 5]], (1, np.nan), "no numbers"),
        ([[0, 0], [0, 1e9]], (1, 1), "too far apart"),
    ],
)
def test_positions_that_make_no_plane_are_refused(places, step, text):
    with pytest.raises(ValueError, match=text):
        mosaics.by_stage(np.array(places, float), step, TILE, flipped=(0, 0), swapped=False)
