"""Labels of tiles that agree give the untiled labels; where they do not, nothing is lost."""

import numpy as np
import pytest
from skimage.measure import label as connected

from cutting import cut, same_objects, windows
from iaunet import layout, matching, reconcile, synthetic


def tissue(shape, n_cells, rng):
    """Cells that fill the image: every voxel has the label of the nearest of some points."""
    points = rng.random((n_cells, len(shape))) * shape
    where = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    nearest = np.linalg.norm(where[..., None, :] - points, axis=-1).argmin(-1)
    return nearest + 1


def fibres(shape, rng):
    """Lines of some width from side to side, longer than any tile."""
    labels = np.zeros(shape, dtype=int)
    for number, y in enumerate(range(4, shape[-2], 9), start=1):
        along = np.arange(shape[-1])
        at = np.clip(y + 6 * np.sin(along / 17 + number), 0, shape[-2] - 3).astype(int)
        for shift in range(3):
            labels[..., at + shift, along] = number
    return connected(labels, connectivity=1, background=0)


DRAWN = {
    "nuclei": lambda rng: synthetic.draw_nuclei(
        (150, 170), rng, diameter_px=18, coverage=0.5, clustered=0.8
    )[1],
    "tissue": lambda rng: tissue((130, 150), 60, rng),
    "larger than a tile": lambda rng: tissue((130, 150), 4, rng),
    "fibres": lambda rng: fibres((120, 160), rng),
    "tissue in 3D": lambda rng: tissue((24, 50, 60), 40, rng),
    "empty": lambda rng: np.zeros((70, 80), dtype=int),
    "one object everywhere": lambda rng: np.ones((70, 80), dtype=int),
}


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize(("core", "halo"), [(32, 8), (40, 1), (23, 5), (200, 4)])
def test_tiles_that_agree_give_the_untiled_labels(kind, core, halo):
    rng = np.random.default_rng(7)
    truth = connected(DRAWN[kind](rng), connectivity=1, background=0)
    boxes = windows(truth.shape, (core,) * truth.ndim, (halo,) * truth.ndim)
    found = reconcile.reconciled(*cut(truth, boxes, rng))
    assert found.dtype == np.uint32
    assert same_objects(truth, found)
    numbers, first = np.unique(found, return_index=True)
    assert numbers.tolist() == list(range(found.max() + 1)) or truth.all()
    first = first[numbers > 0]
    assert (np.diff(first) > 0).all()  # in the order of the first voxels


@pytest.mark.parametrize("seed", range(8))
def test_tiles_at_any_places_that_agree_give_the_untiled_labels(seed):
    rng = np.random.default_rng(seed)
    truth = connected(tissue((110, 120), 40, rng), connectivity=1, background=0)
    boxes = [
        [
            (max(0, at + rng.integers(-9, -3)), min(n, at + 30 + rng.integers(3, 9)))
            for at, n in zip(corner, truth.shape, strict=True)
        ]
        for corner in np.ndindex(4, 4)
        for corner in [np.array(corner) * 30]
    ]
    found = reconcile.reconciled(*cut(truth, boxes, rng))
    seen = np.zeros(truth.shape, dtype=bool)
    for box in boxes:
        seen[tuple(slice(*side) for side in box)] = True
    assert seen.all()
    assert same_objects(truth, found)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_ids_of_any_type_and_size_are_taken(dtype):
    rng = np.random.default_rng(1)
    truth = connected(tissue((60, 70), 20, rng), connectivity=1, background=0)
    boxes = windows(truth.shape, (32, 32), (6, 6))
    most = np.iinfo(dtype).max
    found = reconcile.reconciled(*cut(truth, boxes, rng, dtype, first=int(most) - 40))
    assert same_objects(truth, found)


def test_the_order_of_the_tiles_does_not_matter():
    rng = np.random.default_rng(3)
    truth = connected(tissue((90, 100), 30, rng), connectivity=1, background=0)
    tiles, starts = cut(truth, windows(truth.shape, (32, 32), (6, 6)), rng)
    order = rng.permutation(len(tiles))
    shuffled = reconcile.reconciled([tiles[k] for k in order], [starts[k] for k in order])
    assert np.array_equal(shuffled, reconcile.reconciled(tiles, starts))


def test_many_objects_in_one_tile_are_all_there():
    labels = np.zeros((512, 512), dtype=np.uint32)
    labels[::2, ::2] = np.arange(1, 65537).reshape(256, 256)
    found = reconcile.reconciled([labels[:, :300], labels[:, 280:]], [(0, 0), (0, 280)])
    assert same_objects(labels, found)


def one_row(*values):
    return np.array([values], dtype=np.uint32)


def test_pieces_of_abutting_tiles_are_linked_at_their_face():
    upper = np.zeros((8, 12), dtype=np.uint32)
    upper[3:, 2:6], upper[5:, 6:10] = 4, 9
    lower = np.zeros((8, 12), dtype=np.uint32)
    lower[:4, 2:6], lower[:2, 7:10] = 9, 2
    found = reconcile.reconciled([upper, lower], [(0, 0), (8, 0)])
    assert np.unique(found).tolist() == [0, 1, 2]
    assert same_objects(np.concatenate([upper, np.where(lower == 9, 4, lower // 2 * 9)]), found)


@pytest.mark.parametrize("gap", [1, 4, 8])
def test_pieces_on_both_sides_of_a_gap_are_linked(gap):
    piece = np.zeros((10, 10), dtype=np.uint32)
    piece[2:6], piece[7:9, 7:] = 1, 2
    other = np.zeros((10, 10), dtype=np.uint32)
    other[2:6], other[7:9, :2] = 5, 3
    found = reconcile.reconciled([piece, other], [(0, 0), (0, 10 + gap)])
    assert np.unique(found).tolist() == [0, 1, 2]
    assert not found[:, 10 : 10 + gap].any()
    assert found[4, 0] == found[4, -1] != found[7, 9] == found[7, 10 + gap] != 0


def test_a_gap_wider_than_the_limit_is_not_bridged():
    piece = np.ones((6, 6), dtype=np.uint32)
    far = 6 + layout.MAX_GAP_PX + 1
    assert reconcile.reconciled([piece, piece], [(0, 0), (0, far)]).max() == 2


def test_what_one_tile_tells_apart_is_not_merged_by_a_chain_of_others():
    # Left and right of the first tile touch; each of the others joins one with a common third.
    first = one_row(1, 1, 1, 1, 2, 2, 2, 2)
    below = one_row(7, 7, 7, 7, 7, 7, 7, 7)
    found = reconcile.reconciled([first, below], [(0, 0), (1, 0)])
    assert found[0, 0] != found[0, -1]


def test_pieces_that_meet_outside_of_their_tile_are_one_object():
    # A horseshoe, open to the left: the left tile sees two legs, the right one the bend.
    truth = np.zeros((20, 40), dtype=int)
    truth[3:6, 4:30] = truth[12:15, 4:30] = truth[3:15, 27:30] = 1
    left, right = truth[:, :24].copy(), truth[:, 16:].copy()
    left[12:15][left[12:15] > 0] = 2
    found = reconcile.reconciled([left.astype(np.uint8), right.astype(np.uint8)], [(0, 0), (0, 16)])
    assert same_objects(truth, found)


def test_an_object_that_the_owner_of_its_place_missed_is_kept():
    seen = np.zeros((20, 40), dtype=np.uint16)
    seen[8:12, 14:18] = 3  # centre in the left half, whole in the right tile
    left, right = np.zeros((20, 26), np.uint16), seen[:, 10:]
    found = reconcile.reconciled([left, right], [(0, 0), (0, 10)], margin_px=(0, 2))
    assert same_objects(seen, found)


def test_an_object_that_lies_on_another_ones_is_overruled_and_said():
    left, right = np.zeros((20, 26), np.uint16), np.zeros((20, 30), np.uint16)
    left[4:16, 4:24] = 1
    right[8:10, 5:7] = 6  # a speck in the middle of it: columns 15 and 16 of the image
    tiles, starts = [left, right], [(0, 0), (0, 10)]
    placed = layout.layout(starts, [tile.shape for tile in tiles], (0, 2))

    def read(tile, box):
        start = starts[tile]
        return tiles[tile][
            tuple(slice(s.start - a, s.stop - a) for s, a in zip(box, start, strict=True))
        ]

    nodes = matching.all_nodes(placed, read)
    matches, covers = matching.all_matches(placed, read, nodes)
    decision = reconcile.decide(nodes, matches, covers, lambda tile: set())
    assert decision.verdict[nodes.label == 6].tolist() == [reconcile.OVERRULED]


def test_whole_objects_are_taken_as_the_owner_of_their_centre_drew_them():
    truth = np.zeros((24, 60), dtype=np.uint16)
    truth[8:16, 20:32] = 1
    left, right = truth[:, :40].copy(), truth[:, 16:].copy()
    right[8:16, 12:17] = 1  # the right tile draws it larger
    found = reconcile.reconciled([left, right], [(0, 0), (0, 16)])
    assert same_objects(truth, found)


def test_a_second_vote_decides_between_equal_matches():
    upper = one_row(1, 1, 1, 1, 0, 0)
    lower = one_row(5, 5, 8, 8, 0, 0)
    vectors = {1: (1.0, 0.0), 5: (-1.0, 0.0), 8: (1.0, 0.1)}
    placed = layout.layout([(0, 0), (1, 0)], [upper.shape, lower.shape])
    nodes = matching.all_nodes(placed, lambda tile, box: (upper, lower)[tile])
    vote = matching.similarity_of(np.array([vectors[int(label)] for label in nodes.label]))
    matches, _ = matching.all_matches(placed, lambda tile, box: (upper, lower)[tile], nodes, vote)
    best = matches.other[matches.mutual]
    assert nodes.label[best].tolist() == [8]


def test_owners_partition_a_regular_grid_at_the_middle_of_the_overlaps():
    boxes = windows((40, 40), (20, 20), (6, 6))
    placed = layout.layout(
        [[a for a, _ in b] for b in boxes], [[b - a for a, b in c] for c in boxes]
    )
    points = np.argwhere(np.ones((40, 40), dtype=bool))
    deepest = np.argmax([placed.depths(tile, points) for tile in range(4)], axis=0)
    assert deepest.tolist() == ((points[:, 0] >= 20) * 2 + (points[:, 1] >= 20)).tolist()


def test_a_margin_that_leaves_no_common_ground_is_refused():
    with pytest.raises(ValueError, match="smallest overlap there is 4 px, needs at most 1"):
        layout.layout([(0, 0), (0, 8)], [(12, 12), (12, 12)], (0, 2))


@pytest.mark.parametrize("between", [0, 3])
def test_a_face_that_a_third_tile_sees_across_is_no_evidence(between):
    # Two objects, one behind the other: the outer tiles alone would link them.
    truth = np.zeros((8, 30), dtype=np.uint8)
    truth[2:6, 5 : 14 + between], truth[2:6, 14 + between : 25] = 1, 2
    boxes = [[(0, 8), (0, 14)], [(0, 8), (5, 26)], [(0, 8), (14 + between, 30)]]
    tiles, starts = cut(truth, boxes, np.random.default_rng(0))
    assert same_objects(truth, reconcile.reconciled(tiles, starts))


@pytest.mark.parametrize("n_dims", [2, 3])
@pytest.mark.parametrize(("core", "halo"), [(16, 4), (16, 6), (10, 4), (12, 6)])
def test_small_tiles_whose_second_neighbours_nearly_meet_give_the_untiled_labels(
    n_dims, core, halo
):
    rng = np.random.default_rng(2)
    shape = {2: (70, 80), 3: (24, 40, 40)}[n_dims]
    truth = connected(tissue(shape, 60, rng), connectivity=1, background=0)
    boxes = windows(shape, (core,) * n_dims, (halo,) * n_dims)
    assert same_objects(truth, reconcile.reconciled(*cut(truth, boxes, rng)))
