"""The benchmark of mergers cuts truths rightly, and errs where it says it errs."""

import numpy as np
import pytest

import cases
import rules
import run
import truths
from iaunet import layout

CUT_2D = cases.Cut("overlap 12", (24, 20), 6)
CUT_3D = cases.Cut("overlap 8", (10, 16, 16), 4)


@pytest.fixture(params=[2, 3])
def truth(request, rng):
    shape = {2: (70, 80), 3: (24, 40, 40)}[request.param]
    return truths.tissue(shape, rng, cell_px=9)


def cut_of(truth):
    return CUT_2D if truth.ndim == 2 else CUT_3D


def same_partition(one, other):
    """Return whether voxels have the same label here if and only if they have there."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


def test_cores_partition_the_image_and_windows_add_the_halo(truth):
    windows, cores = cut_of(truth).boxes(truth.shape)
    times = np.zeros(truth.shape, dtype=int)
    for window, core in zip(windows, cores, strict=True):
        times[core] += 1
        for inner, outer, length in zip(core, window, truth.shape, strict=True):
            assert outer.start == max(0, inner.start - cut_of(truth).halo_px)
            assert outer.stop == min(length, inner.stop + cut_of(truth).halo_px)
    assert (times == 1).all()


def test_a_gap_is_seen_by_no_tile_and_is_0_in_the_truth(truth):
    core = tuple(length // 2 - 2 for length in truth.shape)
    case = cases.case(truth, cases.Cut("gap 3", core, 0, gap_px=3), cases.IDEAL, 0)
    seen = np.zeros(truth.shape, dtype=bool)
    for window in case.windows:
        seen[window] = True
    assert not seen.all()
    assert not case.truth[~seen].any()
    assert np.array_equal(case.truth[seen], truth[seen])


def test_ideal_tiles_are_the_truth_under_other_numbers(truth):
    case = cases.case(truth, cut_of(truth), cases.IDEAL, 0)
    for tile, window in zip(case.tiles, case.windows, strict=True):
        assert same_partition(tile, truth[window])
        assert sorted(np.unique(tile)) == list(range(tile.min(), tile.max() + 1))


def test_errors_near_faces_keep_to_the_border_zone(truth):
    cut = cut_of(truth)
    case = cases.case(truth, cut, cases.BORDER, 0)
    n_wrong = 0
    for tile, window in zip(case.tiles, case.windows, strict=True):
        zone = cases.border_zone(window, truth.shape, case.border_px)
        assert same_partition(tile[~zone], truth[window][~zone])
        n_wrong += not same_partition(tile, truth[window])
    assert n_wrong == len(case.tiles)


def test_the_border_zone_lies_outside_of_what_we_trust(truth):
    case = cases.case(truth, cut_of(truth), cases.IDEAL, 0)
    starts = [[side.start for side in window] for window in case.windows]
    placed = layout.layout(starts, [tile.shape for tile in case.tiles])
    for tile, window in enumerate(case.windows):
        zone = np.zeros(truth.shape, dtype=bool)
        zone[window] = cases.border_zone(window, truth.shape, case.border_px)
        assert not zone[placed.trusted(tile)].any()


def test_inconsistent_tiles_err_in_objects_on_faces_of_cores(truth):
    case = cases.case(truth, cut_of(truth), cases.INCONSISTENT, 0)
    objects = cases.crossing(truth, case.cores)
    wrong = [
        tile
        for tile, window in zip(case.tiles, case.windows, strict=True)
        if not same_partition(tile, truth[window])
    ]
    assert wrong
    assert all(len(cores) > 1 for cores in objects.values())


@pytest.mark.parametrize("condition", cases.CONDITIONS)
def test_the_same_seed_gives_the_same_case(truth, condition):
    one, other = (cases.case(truth, cut_of(truth), condition, 3) for _ in range(2))
    for a, b in zip(one.tiles, other.tiles, strict=True):
        assert np.array_equal(a, b)


def test_pieces_of_a_label_are_objects():
    found = truths.pieces(np.array([[4, 4, 0, 4], [7, 7, 0, 4], [0, 0, 7, 0]]))
    assert found.tolist() == [[1, 1, 0, 2], [3, 3, 0, 2], [0, 0, 4, 0]]


def test_the_score_of_the_truth_is_perfect(truth):
    n_objects = len(np.unique(truth))
    renamed = np.random.default_rng(0).permutation(n_objects + 1)[truth] + 1
    assert run.score(truth, renamed) == run.Score(n_objects, n_objects, n_objects, 0, 0, 1.0)


def test_the_score_counts_lost_and_merged_objects():
    truth = np.repeat([1, 2, 3, 4], 6)[None]
    found = np.repeat([8, 8, 5, 0], 6)[None]
    scored = run.score(truth, found)
    assert (scored.exact, scored.predicted, scored.merged, scored.lost) == (1, 2, 2, 1)


@pytest.mark.parametrize("condition", [cases.IDEAL, cases.BORDER])
def test_ours_gives_back_all_objects_where_tiles_err_at_their_borders_only(truth, condition):
    case = cases.case(truth, cut_of(truth), condition, 1)
    found = rules.ours(case.tiles, case.windows, case.cores, truth.shape)
    scored = run.score(truth, found)
    assert scored.exact == scored.predicted == scored.true


@pytest.mark.parametrize("rule", ["offset", "face IoU"])
def test_rules_without_overlap_return_all_voxels(truth, rule):
    case = cases.case(truth, cut_of(truth), cases.IDEAL, 1)
    found = rules.RULES[rule](case.tiles, case.windows, case.cores, truth.shape)
    assert np.array_equal(found > 0, truth > 0)


def test_objects_inside_of_a_core_are_exact_by_plain_offset():
    truth = np.zeros((20, 20), dtype=np.uint32)
    truth[2:6, 2:6], truth[12:16, 12:16] = 1, 2
    case = cases.case(truth, cases.Cut("overlap 4", (10, 10), 2), cases.IDEAL, 0)
    found = rules.offset(case.tiles, case.windows, case.cores, truth.shape)
    assert same_partition(found, truth)


def test_the_grid_of_cores_is_found_whatever_their_order(truth, rng):
    _, cores = cut_of(truth).boxes(truth.shape)
    order = rng.permutation(len(cores))
    grid = rules.grid_of([cores[k] for k in order])
    assert order[grid].ravel().tolist() == list(range(len(cores)))
    n_faces = sum(grid.size // length * (length - 1) for length in grid.shape)
    assert len(rules.neighbours(grid)) == n_faces
