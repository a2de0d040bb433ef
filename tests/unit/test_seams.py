"""Whether tiles can be seen: 1 for objects that know nothing of tiles, more for cut ones."""

import numpy as np
import pytest

import drawn_outputs
from iaunet import clustering, grid, seams, synthetic


def literal(labels, core):
    """Count outlines by their place in the tiles, pair by pair."""
    found = np.zeros((labels.ndim, max(core)), int)
    for axis in range(labels.ndim):
        along = np.moveaxis(labels, axis, 0)
        for at in range(len(along) - 1):
            found[axis, at % core[axis]] += np.count_nonzero(along[at] != along[at + 1])
    return found


@pytest.mark.parametrize(("shape", "core"), [((90, 85), (16, 24)), ((14, 34, 38), (8, 16, 16))])
def test_counts_of_tiles_add_up_to_those_of_the_image(shape, core, rng):
    drawn = drawn_outputs.ellipsoids(shape, (4,) * len(shape), rng, n=40)
    chosen = clustering.Settings.from_dict({"min_size": 2}, len(shape))
    stride = (4,) * len(shape)
    whole = clustering.label_array(drawn, chosen, stride)
    total = np.zeros((len(shape), max(core)), int)
    for tile in grid.tiles(shape, core):
        found = clustering.label_window(
            drawn_outputs.reader(drawn),
            tile.core,
            shape,
            chosen,
            clustering.largest(drawn, chosen),
            stride,
        )
        total[:, : found.outlines.shape[1]] += found.outlines
    np.testing.assert_array_equal(total, literal(whole, core))
    assert (total.sum(1) > 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_objects_that_know_nothing_of_tiles_do_not_show_them(seed):
    rng = np.random.default_rng(seed)
    diameter, coverage = rng.choice([9, 14, 40]), rng.choice([0.03, 0.4])
    options = {"diameter_px": int(diameter), "coverage": float(coverage)}
    labels = synthetic.draw_nuclei((600, 640), rng, **options)[1]
    cuts = seams.straight_cuts(literal(labels, (64, 64)), (64, 64))
    assert not cuts["seams_visible"]
    if diameter == 9 and coverage == 0.4:
        assert 0.9 < cuts["straight_cut_score"] < 1.1


@pytest.mark.parametrize("coverage", [0.05, 0.4])
def test_objects_that_are_cut_at_tile_faces_are_seen(rng, coverage):
    labels = synthetic.draw_nuclei((600, 640), rng, diameter_px=14, coverage=coverage)[1]
    y, x = np.indices(labels.shape)
    cut = np.where(labels > 0, labels * 1000 + (y // 64) * 30 + x // 64, 0)
    cuts = seams.straight_cuts(literal(cut, (64, 64)), (64, 64))
    assert cuts["straight_cut_score"] > 2
    assert cuts["seams_visible"]


def test_no_object_has_no_score():
    cuts = seams.straight_cuts(np.zeros((3, 16)), (4, 16, 16))
    assert cuts["straight_cut_score"] is None
    assert not cuts["seams_visible"]


def test_as_many_objects_as_expected_lie_near_faces(rng):
    centres = rng.random((4000, 2)) * (600, 640)
    sizes = rng.integers(80, 200, 4000)
    faces = [np.arange(64, 600, 64), np.arange(64, 640, 64)]
    found = seams.near_faces(centres, sizes, (600, 640), faces)
    assert found["objects_near_faces"] == pytest.approx(found["near_faces_expected"], rel=0.1)
    assert found["near_faces_size"] == pytest.approx(1, abs=0.1)


def test_halves_of_objects_near_faces_are_more_and_smaller(rng):
    centres, sizes = rng.random((4000, 2)) * (600, 640), np.full(4000, 150.0)
    faces = [np.arange(64, 600, 64), np.zeros(0)]
    near = np.abs(centres[:, 0] - np.round(centres[:, 0] / 64).clip(1, 9) * 64) < 5
    centres, sizes = np.concatenate([centres, centres[near]]), np.concatenate([sizes, sizes[near]])
    sizes[: len(near)][near] /= 2
    sizes[len(near) :] /= 2
    found = seams.near_faces(centres, sizes, (600, 640), faces)
    assert found["objects_near_faces"] > 1.3 * found["near_faces_expected"]
    assert found["near_faces_size"] < 0.7


def test_one_tile_has_no_faces():
    faces = [np.zeros(0), np.zeros(0)]
    found = seams.near_faces(np.ones((3, 2)), np.ones(3), (9, 9), faces)
    assert found["objects_near_faces"] is None
