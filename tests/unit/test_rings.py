"""Outlines are valid polygons and hold exactly the pixels that they were made of."""

import numpy as np
import pytest
import shapely

from iaunet import rings


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_outlines_are_valid_and_give_the_mask_back(density, rng):
    for _ in range(200):
        mask = rng.random(rng.integers(1, 14, 2)) < density
        found = rings.polygons(mask)
        np.testing.assert_array_equal(rings.filled(found, mask.shape), mask)
        whole = shapely.MultiPolygon([(one[0], one[1:]) for one in found])
        assert whole.is_valid
        assert whole.area == mask.sum()


def test_there_is_a_vertex_only_where_an_outline_turns(rng):
    mask = rng.random((20, 20)) < 0.6
    for ring in (ring for polygon in rings.polygons(mask) for ring in polygon):
        steps = np.sign(np.roll(ring, -1, axis=0) - ring)
        assert (np.abs(steps).sum(axis=1) == 1).all()
        assert (np.abs(steps) != np.abs(np.roll(steps, 1, axis=0))).all()


def test_outer_rings_come_first_and_turn_the_other_way_than_holes():
    mask = np.ones((5, 5), bool)
    mask[1, 1] = mask[3, 3] = False
    (polygon,) = rings.polygons(mask)
    assert [rings.is_hole(ring) for ring in polygon] == [False, True, True]


def test_pixels_that_touch_by_a_corner_are_two_polygons():
    assert len(rings.polygons(np.eye(2, dtype=bool))) == 2
