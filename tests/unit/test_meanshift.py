import dataclasses

import numpy as np
import pytest
from scipy import ndimage

import drawn_outputs
from iaunet import clustering, grid, meanshift
from iaunet.errors import InputError

STRIDES = {2: (4, 4), 3: (1, 4, 4)}


def settings(ndim, **values):
    chosen = {"mode": "meanshift", "min_size": 3, "bandwidth": 1.5, "unit_px": 3, "window_px": 8}
    return clustering.Settings.from_dict({**chosen, **values}, ndim)


def label(drawn, chosen):
    return clustering.label_array(drawn, chosen, STRIDES[drawn["fg"].ndim])


# The slow, literal reading of the method, on Python integers.


def literal_points(drawn, chosen):
    points = {}
    for at in np.argwhere(drawn["fg"] >= chosen.fg_least):
        at = tuple(at.tolist())
        moved = chosen.vectors != "conv"
        vote = [16 * x + moved * int(drawn["off"][(a, *at)]) for a, x in enumerate(at)]
        vector = [] if chosen.vectors == "spatial" else drawn["emb"][(slice(None), *at)].tolist()
        points[at] = (vote, vector)
    return points


def literal_near(one, other, chosen):
    """Return the squared distance in units of the embedding * 2**40, or None when not near."""
    apart = [abs(a - b) for a, b in zip(one[0], other[0], strict=True)]
    cost = sum((a - b) ** 2 for a, b in zip(one[1], other[1], strict=True)) * 2**20
    if chosen.vectors != "conv":
        cost += sum(a**2 for a in apart) * round(2**40 / (16 * chosen.unit_px) ** 2)
    near = max(apart) <= 16 * chosen.window_px and cost <= round(chosen.bandwidth**2 * 2**40)
    return cost if near else None


def literal_mode(point, points, chosen):
    """Move a point over all others; return where it is at last and how many are near there."""
    for _ in range(meanshift.STEPS):
        near = [q for q in points.values() if literal_near(point, q, chosen) is not None]
        if near:
            point = tuple(
                [sum(q[part][a] for q in near) // len(near) for a in range(len(point[part]))]
                for part in (0, 1)
            )
    return point, sum(literal_near(point, q, chosen) is not None for q in points.values())


def literal_labels(drawn, chosen):
    points = literal_points(drawn, chosen)
    shape = drawn["fg"].shape
    index = {at: int(np.ravel_multi_index(at, shape)) for at in points}
    densities = {}
    for point in points.values():
        mode, density = literal_mode(point, points, chosen)
        densities[tuple(map(tuple, mode))] = density
    seeds = [
        mode
        for mode, density in densities.items()
        if not any(
            (-other_density, other) < (-density, mode)
            and literal_near(other, mode, chosen) is not None
            for other, other_density in densities.items()
        )
    ]
    members = {}
    for at, point in points.items():
        costs = [(literal_near(point, seed, chosen), seed) for seed in seeds]
        costs = [cost for cost in costs if cost[0] is not None]
        if costs:
            members.setdefault(min(costs)[1], []).append(at)
    labels = np.zeros(shape, dtype=np.uint64)
    for voxels in members.values():
        best = min(voxels, key=lambda at: (-int(drawn["seed"][at]), index[at]))
        for at in voxels:
            labels[at] = index[best] + 1 if len(voxels) >= chosen.min_size else 0
    return labels


def noise(shape, rng):
    drawn = drawn_outputs.noise(shape, STRIDES[len(shape)], rng)
    drawn["fg"] *= rng.random(shape) < 0.3
    drawn["emb"] = rng.integers(-1, 2, (2, *shape)).astype("i2") * 1024
    drawn["emb"][:, drawn["fg"] < 26] = 0
    return drawn_outputs.with_identity(drawn, rng)


def sticks(shape, rng):
    return drawn_outputs.sticks(shape, STRIDES[len(shape)], rng, n=max(5, np.prod(shape) // 300))


KINDS = {"sticks": sticks, "noise": noise}
VARIANTS = [
    pytest.param({}, id="hybrid"),
    pytest.param({"vectors": "spatial", "min_size": 1, "bandwidth": 0.7}, id="spatial"),
    pytest.param({"vectors": "conv", "bandwidth": 1, "window_px": 5}, id="conv"),
    pytest.param({"window_px": 2}, id="window smaller than the kernel"),
]


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(19, 22), (4, 9, 12)], ids=["2d", "3d"])
def test_fast_labels_are_those_of_the_literal_method(kind, shape, values, rng):
    drawn = KINDS[kind](shape, rng)
    chosen = settings(len(shape), **values)
    found = label(drawn, chosen)
    np.testing.assert_array_equal(found, literal_labels(drawn, chosen))
    assert len(np.unique(found)) > 2


GRIDS = {2: [(32, 24), (19, 200)], 3: [(8, 16, 16), (5, 60, 17)]}
SHAPES = {2: (110, 96), 3: (12, 30, 32)}


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_tiles_of_any_size_give_the_labels_and_tables_of_the_whole_image(kind, ndim, values, rng):
    shape = SHAPES[ndim]
    drawn = KINDS[kind](shape, rng)
    chosen = settings(ndim, smooth=1, **values)
    args = (shape, chosen, clustering.largest(drawn, chosen), STRIDES[ndim])
    read = drawn_outputs.reader(drawn)
    everything = tuple(slice(0, length) for length in shape)
    labels, table, seen, *_ = clustering.label_window(read, everything, *args)
    objects = {int(gid): row for row, gid in enumerate(seen["gid"])}
    assert len(objects) > 4
    for core in GRIDS[ndim]:
        tiled = np.zeros_like(labels)
        tables = []
        for tile in grid.tiles(shape, core):
            tiled[tile.core], owned, sighted, *_ = clustering.label_window(read, tile.core, *args)
            tables.append(owned)
            for row, gid in enumerate(sighted["gid"].tolist()):
                for name in ("area", "checksum", "min_x", "max_y"):
                    assert sighted[name][row] == seen[name][objects[gid]]
        np.testing.assert_array_equal(tiled, labels)
        joined = {name: np.concatenate([part[name] for part in tables]) for name in table}
        order = np.argsort(joined["gid"])
        for name, column in table.items():
            np.testing.assert_array_equal(joined[name][order], column)


def test_drawn_sticks_are_in_pieces_and_tiles_cut_them(rng):
    drawn = sticks(SHAPES[2], rng)
    labels = label(drawn, settings(2))
    pieces = [ndimage.label(labels == value)[1] for value in np.unique(labels[labels > 0])]
    assert sum(count > 1 for count in pieces) > 1
    assert ndimage.label(labels > 0)[1] < len(pieces)


def test_a_window_reads_no_farther_than_its_reach_and_needs_nothing_beyond(rng):
    shape, core = (240, 230), (slice(110, 130), slice(105, 119))
    chosen = settings(2, smooth=1, bandwidth=1)
    drawn = drawn_outputs.sticks(shape, (4, 4), rng, n=150)
    bounds = clustering.largest(drawn, chosen)
    boxes = {}

    def spy(name, box):
        boxes.setdefault(name, []).append(box)
        return drawn[name][(..., *box)]

    found = clustering.label_window(spy, core, shape, chosen, bounds, (4, 4), faces=False)[0]
    np.testing.assert_array_equal(found, label(drawn, chosen)[core])
    far = clustering.reach(chosen, bounds)
    near = [a + b for a, b in zip(far.extent, far.seeds, strict=True)]
    assert boxes["fg"] == boxes["off"] == boxes["emb"] == [grid.grow(core, near, shape)]
    assert boxes["seed"] == [grid.grow(core, [n + 1 for n in far.extent], shape)]
    assert "lsig" not in boxes
    assert max(near) < 105


def seeds_near(points, at, kernel):
    """Return the seeds within one window of a place."""
    seeds = meanshift.seeds(*meanshift.modes(points, kernel), kernel)
    return seeds[(np.abs(seeds[:, :3] - at) <= kernel.window).all(axis=1)].tolist()


def test_seeds_follow_from_points_within_seven_windows_and_not_from_nearer_ones(rng):
    kernel = meanshift.Kernel.of("hybrid", 1, 2, 8)
    wrong = dict.fromkeys((meanshift.STEPS + 2, 2), 0)
    for _ in range(40):
        points = rng.integers(0, 20 * kernel.window, (400, 5))
        points[:, 0] = 0
        points[:, 3:] = rng.integers(-600, 600, (400, 2))
        at = np.array([0, 10, 10]) * kernel.window
        expected = seeds_near(points, at, kernel)
        for windows in wrong:
            near = (np.abs(points[:, :3] - at) <= windows * kernel.window).all(axis=1)
            wrong[windows] += seeds_near(points[near], at, kernel) != expected
    assert wrong[meanshift.STEPS + 2] == 0
    assert wrong[2] > 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_window_that_does_not_see_objects_whole_does_change_labels(ndim, monkeypatch, rng):
    shape = SHAPES[ndim]
    drawn = sticks(shape, rng)
    chosen = settings(ndim, min_size=12)
    expected = label(drawn, chosen)
    bounds = clustering.largest(drawn, chosen)
    less = dataclasses.replace(clustering.reach(chosen, bounds), extent=(2,) * ndim)
    monkeypatch.setattr(clustering, "reach", lambda *_: less)
    tiled = np.zeros_like(expected)
    for tile in grid.tiles(shape, (16,) * ndim):
        tiled[tile.core] = clustering.label_window(
            drawn_outputs.reader(drawn), tile.core, shape, chosen, bounds, STRIDES[ndim]
        )[0]
    assert (tiled != expected).any()


def bars():
    """Draw a bar that another one cuts in two, whose centre is the same."""
    drawn = drawn_outputs.empty((40, 40), (4, 4))
    drawn["emb"] = np.zeros((2, 40, 40), "i2")
    for vector, box in (((1, 0), np.s_[18:22, 4:36]), ((-1, 0), np.s_[4:36, 17:23])):
        mask = np.zeros((40, 40), bool)
        mask[box] = True
        drawn_outputs.add_object(drawn, mask, (20, 20), (20, 20), (3, 3), np.random.default_rng(0))
        drawn["emb"][:, mask] = 1024 * np.array(vector)[:, None]
    return drawn


def test_crossing_objects_with_one_centre_are_told_apart_by_their_embeddings():
    drawn = bars()
    labels = label(drawn, settings(2))
    across, along = labels[20, 5], labels[5, 20]
    assert len({0, across, along}) == 3
    expected = np.where(drawn["emb"][0] > 0, across, np.where(drawn["emb"][0] < 0, along, 0))
    np.testing.assert_array_equal(labels, expected)
    assert labels[20, 35] == across
    assert len(np.unique(label(drawn, settings(2, vectors="spatial")))) == 2


def test_the_embedding_alone_joins_alike_objects_that_are_near_and_no_others():
    drawn = drawn_outputs.empty((5, 60), (4, 4))
    drawn["emb"] = np.zeros((1, 5, 60), "i2")
    drawn["fg"][1:4, 2:5] = drawn["fg"][1:4, 9:12] = drawn["fg"][1:4, 40:43] = 255
    labels = label(drawn, settings(2, vectors="conv", window_px=10))
    assert labels[2, 3] == labels[2, 10] > 0
    assert labels[2, 41] not in (0, labels[2, 3])


def test_no_foreground_gives_background_and_tables_without_rows():
    drawn = sticks((20, 30), np.random.default_rng(0))
    chosen = settings(2)
    everything = (slice(0, 20), slice(0, 30))
    bounds = clustering.largest(drawn, chosen)
    args = (everything, (20, 30), chosen, bounds, (4, 4))
    _, *full, _ = clustering.label_window(drawn_outputs.reader(drawn), *args)
    nothing = drawn_outputs.empty((20, 30), (4, 4))
    labels, *none, _ = clustering.label_window(drawn_outputs.reader(nothing), *args)
    assert not labels.any()
    for found, wanted in zip(none, full, strict=True):
        assert {n: c.dtype for n, c in found.items()} == {n: c.dtype for n, c in wanted.items()}
        assert all(len(column) == 0 for column in found.values())


def test_bounds_that_do_not_hold_are_an_error(rng):
    drawn = sticks((40, 40), rng)
    wrong = clustering.Bounds((1, 1), (0, 0))
    core = (slice(0, 40), slice(0, 40))
    with pytest.raises(InputError, match="exceeds the maximum"):
        clustering.label_window(
            drawn_outputs.reader(drawn), core, (40, 40), settings(2), wrong, (4, 4)
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "mean-shift"}, "mode is 'mean-shift', needs local or meanshift"),
        ({"vectors": 3}, "vectors is '3', needs hybrid or spatial or conv"),
        ({"bandwidth": 0}, "bandwidth is 0, needs a number from 0.1 to 100"),
        ({"window_px": 2.5}, "window_px is 2.5, needs a whole number"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_needs(values, message):
    with pytest.raises(InputError, match=message):
        settings(2, **values)
