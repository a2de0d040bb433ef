import dataclasses
import math
import zlib

import numpy as np
import pytest
from scipy import ndimage

import drawn_outputs
from iaunet import clustering, grid, joining
from iaunet.bounds import WEIGHT
from iaunet.errors import InputError


def settings(ndim, **values):
    return clustering.Settings.from_dict({"min_size": 2, **values}, ndim)


def whole_tables(drawn, chosen, id_stride):
    shape = drawn["fg"].shape
    return clustering.label_window(
        drawn_outputs.reader(drawn),
        tuple(slice(0, length) for length in shape),
        shape,
        chosen,
        clustering.largest(drawn, chosen),
        id_stride,
    )


# The slow, literal reading of the method, on Python integers.


def literal_scores(drawn, chosen):
    score = drawn["seed"].astype(object)
    for _ in range(chosen.smooth):
        padded = np.pad(score, 1)
        score = sum(
            padded[tuple(slice(s, s + length) for s, length in zip(step, score.shape, strict=True))]
            for step in np.ndindex((3,) * score.ndim)
        )
    return score


def literal_seeds(drawn, chosen):
    score = literal_scores(drawn, chosen)
    one = 32767 * 3 ** (score.ndim * chosen.smooth)
    seeds = []
    for at in np.ndindex(score.shape):
        if score[at] <= chosen.seed * one or drawn["fg"][at] / 255 < chosen.fg:
            continue
        window = tuple(
            slice(max(0, x - w), x + w + 1) for x, w in zip(at, chosen.seed_window, strict=True)
        )
        keys = [
            (score[other], -np.ravel_multi_index(other, score.shape))
            for other in np.ndindex(score.shape)
            if all(s.start <= o < s.stop for o, s in zip(other, window, strict=True))
        ]
        if max(keys) == (score[at], -np.ravel_multi_index(at, score.shape)):
            seeds.append((at, score[at]))
    return seeds


def literal_distance(a, b, lsig):
    total = 0
    for x, y, level in zip(a, b, lsig, strict=True):
        total += (int(x) - int(y)) ** 2 * round(2**40 / (512 * math.exp(int(level) / 32) ** 2))
    return total


def literal_labels(drawn, chosen, id_stride):
    shape = drawn["fg"].shape
    index = {at: int(np.ravel_multi_index(at, shape)) for at in np.ndindex(shape)}

    def embedding(at):
        return [16 * x + int(drawn["off"][(a, *at)]) for a, x in enumerate(at)]

    def vector(at):
        cell = tuple(x // s for x, s in zip(at, id_stride, strict=True))
        return drawn["id"][(slice(None), *cell)].astype(int)

    def lsig(at):
        return drawn["lsig"][(slice(None), *at)]

    seeds = literal_seeds(drawn, chosen)
    kept = []
    for at, score in seeds:
        better = [
            other
            for other, rival in seeds
            if (rival, -index[other]) > (score, -index[at])
            and literal_distance(embedding(other), embedding(at), np.maximum(lsig(other), lsig(at)))
            < round(-math.log(chosen.suppress) * 2**40)
        ]
        if not better:
            kept.append(at)
    price = round(chosen.identity * 2**40 / 127**2)
    assigned = np.zeros(shape, dtype=np.uint64)
    for at in np.ndindex(shape):
        if drawn["fg"][at] / 255 < chosen.fg:
            continue
        costs = []
        for seed in kept:
            cost = literal_distance(embedding(at), embedding(seed), lsig(seed))
            if cost <= round(-math.log(chosen.phi) * 2**40):
                dot = int(vector(at) @ vector(seed))
                costs.append((cost + price * (127**2 - dot), index[seed]))
        if costs:
            assigned[at] = min(costs)[1] + 1
    return literal_clean(assigned, [(at, index[at] + 1) for at in kept], chosen.min_size)


def literal_clean(assigned, seeds, min_size):
    masks = {}
    for at, label in seeds:
        parts, _ = ndimage.label(assigned == label)
        if parts[at] and (parts == parts[at]).sum() >= min_size:
            masks[label] = parts == parts[at]
    labels = np.zeros_like(assigned)
    for label, mask in masks.items():
        labels[mask] = label
    for label, mask in sorted(masks.items()):
        labels[ndimage.binary_fill_holes(mask) & (labels == 0)] = label
    return labels


KINDS = {
    "ellipsoids": lambda shape, stride, rng: drawn_outputs.ellipsoids(shape, stride, rng, n=12),
    "rings": lambda shape, stride, rng: drawn_outputs.rings(shape, stride, rng, n=14),
    "noise": drawn_outputs.noise,
}
VARIANTS = [
    pytest.param({}, id="plain"),
    pytest.param({"identity": 0.7, "phi": 0.3, "suppress": 0.8, "seed": 0.1}, id="identity"),
    pytest.param({"smooth": 2, "seed_window": 1, "seed": 0.2, "min_size": 1}, id="smooth"),
]
JOINING = pytest.param({"join": 0.5, "suppress": 0.9, "phi": 0.2}, id="joining")


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "id_stride"), [((26, 23), (4, 4)), ((6, 11, 12), (1, 4, 4))], ids=["2d", "3d"]
)
def test_fast_labels_are_those_of_the_literal_method(kind, shape, id_stride, values, rng):
    drawn = KINDS[kind](shape, id_stride, rng)
    chosen = settings(len(shape), **values)
    found = clustering.label_array(drawn, chosen, id_stride)
    np.testing.assert_array_equal(found, literal_labels(drawn, chosen, id_stride))


def test_literal_method_finds_objects_holes_and_strays(rng):
    chosen = settings(2, identity=0.7, phi=0.3, suppress=0.8, seed=0.1)
    drawn = drawn_outputs.rings((26, 23), (4, 4), rng, n=14)
    labels = literal_labels(drawn, chosen, (4, 4))
    assert len(np.unique(labels)) > 4
    assert (labels[drawn["fg"] == 0] > 0).any()


GRIDS_2D = [(16, 16), (24, 40), (7, 9), (200, 30)]
GRIDS_3D = [(4, 8, 8), (8, 24, 16), (5, 7, 60)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "id_stride", "core"),
    [((90, 85), (4, 4), (16, 24)), ((14, 34, 38), (1, 4, 4), (5, 12, 16))],
    ids=["2d", "3d"],
)
def test_tiles_in_one_window_get_what_each_gets_alone(kind, shape, id_stride, core, rng):
    drawn = KINDS[kind](shape, id_stride, rng)
    chosen = settings(len(shape), identity=0.5, join=0.5)
    args = shape, chosen, clustering.largest(drawn, chosen), id_stride
    read = drawn_outputs.reader(drawn)
    some = list(grid.tiles(shape, core))[2:-1:2]  # with gaps between them
    together = clustering.label_windows(read, [tile.core for tile in some], *args)
    for tile, found in zip(some, together, strict=True):
        alone = clustering.label_window(read, tile.core, *args)
        np.testing.assert_array_equal(found.labels, alone.labels)
        np.testing.assert_array_equal(found.outlines, alone.outlines)
        for one, other in zip(found[1:4], alone[1:4], strict=True):
            assert list(one) == list(other)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("values", [*VARIANTS, JOINING])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "id_stride", "cores"),
    [((90, 85), (4, 4), GRIDS_2D), ((14, 34, 38), (1, 4, 4), GRIDS_3D)],
    ids=["2d", "3d"],
)
def test_tiles_of_any_size_give_the_labels_and_tables_of_the_whole_image(
    kind, shape, id_stride, cores, values, rng
):
    drawn = KINDS[kind](shape, id_stride, rng)
    chosen = settings(len(shape), **values)
    bounds = clustering.largest(drawn, chosen)
    labels, table, seen, touching, _ = whole_tables(drawn, chosen, id_stride)
    assert len(table["gid"]) > 2
    objects = {int(gid): row for row, gid in enumerate(seen["gid"])}
    for core in cores:
        tiled = np.zeros_like(labels)
        tables, contacts, in_core = [], [touching], dict.fromkeys(objects, 0)
        for tile in grid.tiles(shape, core):
            tiled[tile.core], owned, sighted, touches, _ = clustering.label_window(
                drawn_outputs.reader(drawn), tile.core, shape, chosen, bounds, id_stride
            )
            tables.append(owned)
            contacts.append(touches)
            for row, gid in enumerate(sighted["gid"].tolist()):
                in_core[gid] += sighted["voxels_in_core"][row]
                for name in sighted:
                    if name != "voxels_in_core":
                        assert sighted[name][row] == seen[name][objects[gid]]
        np.testing.assert_array_equal(tiled, labels)
        assert in_core == {gid: seen["area"][row] for gid, row in objects.items()}
        joined = {name: np.concatenate([part[name] for part in tables]) for name in table}
        order = np.argsort(joined["gid"])
        for name, column in table.items():
            assert joined[name].dtype == column.dtype
            np.testing.assert_array_equal(joined[name][order], column)
        summed = joining.added(contacts[1:])
        for name, column in touching.items():
            np.testing.assert_array_equal(summed[name], column)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ((70, 90), (10**6, 10**6)),
        ((14, 40, 44), (3000, 50_000, 60_000)),
    ],
)
def test_objects_far_inside_an_image_of_a_trillion_voxels_have_the_same_labels(
    shape, image_shape, rng
):
    ndim = len(shape)
    stride = (2,) * ndim
    drawn = drawn_outputs.ellipsoids(shape, stride, rng, n=12, radius_px=(3, 6))
    padded = {
        name: np.pad(
            values,
            [(0, 0)] * (values.ndim - ndim) + [(40 if name != "id" else 20,) * 2] * ndim,
        )
        for name, values in drawn.items()
    }
    chosen, size = settings(ndim), padded["fg"].shape
    bounds = clustering.largest(padded, chosen)
    core = tuple(slice(40, 40 + n) for n in shape)
    offset = [n - 2000 for n in image_shape]

    def far(name, box):
        step = 2 if name == "id" else 1
        values = padded[name]
        here = grid.shift(box, [o // step for o in offset])
        inside = grid.intersection(here, tuple(slice(0, n) for n in values.shape[-ndim:]))
        result = np.zeros((*values.shape[:-ndim], *grid.box_shape(box)), values.dtype)
        result[(..., *grid.shift(inside, grid.origin(here)))] = values[(..., *inside)]
        return result

    def near(name, box):
        return padded[name][(..., *box)]

    moved = tuple(slice(s.start + o, s.stop + o) for s, o in zip(core, offset, strict=True))
    one = clustering.label_window(near, core, size, chosen, bounds, stride)
    other = clustering.label_window(far, moved, image_shape, chosen, bounds, stride)
    seeds = np.array(np.unravel_index(one.table["gid"].astype(np.int64), size))
    named = np.ravel_multi_index(tuple(seeds + np.array(offset)[:, None]), image_shape)
    np.testing.assert_array_equal(other.table["gid"], named)
    assert len(named) > 3
    assert named.min() > 2**39
    where = np.searchsorted(one.table["gid"] + 1, one.labels)
    expected = np.where(one.labels > 0, np.append(named, 0)[where].astype(np.uint64) + 1, 0)
    np.testing.assert_array_equal(other.labels, expected)


def test_a_window_reads_no_farther_than_its_reach_and_needs_nothing_beyond(rng):
    shape, id_stride, core = (260, 240), (4, 4), (slice(100, 130), slice(112, 130))
    chosen = settings(2, smooth=1, identity=0.5)
    drawn = drawn_outputs.rings(shape, id_stride, rng, n=300)
    bounds = clustering.largest(drawn, chosen)
    far = clustering.reach(chosen, bounds)
    boxes = {}

    def spy(name, box):
        boxes.setdefault(name, []).append(box)
        return drawn[name][(..., *box)]

    found = clustering.label_window(spy, core, shape, chosen, bounds, id_stride, faces=False)[0]
    np.testing.assert_array_equal(found, clustering.label_array(drawn, chosen, id_stride)[core])
    near = [sum(parts) for parts in zip(far.extent, far.seeds, strict=True)]
    assert boxes["fg"] == [grid.grow(core, near, shape)]
    assert boxes["off"][0] == grid.grow(core, far.extent, shape)
    assert all(grid.intersection(box, *boxes["fg"]) == box for box in boxes["off"] + boxes["lsig"])
    margins = [sum(parts) for parts in zip(near, far.maxima, strict=True)]
    assert boxes["seed"] == [grid.grow(core, margins, shape)]


def chain(rival):
    """Draw a row in which a far score decides, over all steps, how large the last object is.

    From right to left: the core at 60; seed k, 8 px away; its last voxel, 8 px away; seed k2,
    8 px away, which would take that voxel; seed j, 6 px away, suppresses k2 unless the rival,
    2 px away, keeps j from being a seed.
    """
    drawn = drawn_outputs.empty((3, 80), (4, 4))
    drawn["lsig"][:] = 48
    drawn["fg"][1, 44:61] = 255
    for x, score in ((52, 20000), (36, 18000), (30, 25000), (28, 26000 * rival)):
        drawn["fg"][1, x] = 255
        drawn["seed"][1, x] = score
    bandwidth = math.exp(48 / 32)
    phi, suppress = (math.exp(-((far / bandwidth) ** 2) / 2) for far in (8.1, 6.1))
    return drawn, settings(2, phi=phi, suppress=suppress, seed_window=2, seed=0.3)


def area_of_the_last_object(drawn, chosen):
    bounds = clustering.largest(drawn, chosen)
    core = (slice(0, 3), slice(60, 80))
    read = drawn_outputs.reader(drawn)
    return clustering.label_window(read, core, (3, 80), chosen, bounds, (4, 4))[2]["area"].tolist()


@pytest.mark.parametrize(("rival", "area"), [(True, 16), (False, 17)])
def test_a_window_sees_the_end_of_the_longest_chain_of_reasons(rival, area):
    assert area_of_the_last_object(*chain(rival)) == [area]


@pytest.mark.parametrize(("step", "rival"), [("extent", False), ("seeds", False), ("maxima", True)])
def test_no_step_of_the_reach_could_be_a_pixel_shorter(step, rival, monkeypatch):
    drawn, chosen = chain(rival)
    area = area_of_the_last_object(drawn, chosen)
    reach = clustering.reach

    def shorter(*args):
        far = reach(*args)
        return dataclasses.replace(far, **{step: tuple(n - 1 for n in getattr(far, step))})

    monkeypatch.setattr(clustering, "reach", shorter)
    assert area_of_the_last_object(drawn, chosen) != area


def one_disc(shape, centre, radius_px, rng):
    drawn = drawn_outputs.empty(shape, (4, 4))
    y, x = np.indices(shape)
    mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius_px**2
    drawn_outputs.add_object(drawn, mask, centre, centre, (radius_px,) * 2, rng)
    return drawn_outputs.with_identity(drawn, rng), mask


@pytest.mark.parametrize("radius_px", [5, 30])
def test_an_object_on_a_tile_corner_is_seen_whole_by_every_tile_it_meets(radius_px, rng):
    shape, core, centre = (96, 96), (16, 16), (48, 48)
    drawn, mask = one_disc(shape, centre, radius_px, rng)
    chosen = settings(2)
    bounds = clustering.largest(drawn, chosen)
    n_seen = n_owned = 0
    for tile in grid.tiles(shape, core):
        labels, owned, seen, *_ = clustering.label_window(
            drawn_outputs.reader(drawn), tile.core, shape, chosen, bounds, (4, 4)
        )
        np.testing.assert_array_equal(labels > 0, mask[tile.core])
        n_owned += len(owned["gid"])
        n_seen += len(seen["gid"])
        assert seen["area"].tolist() == [mask.sum()] * len(seen["gid"])
        assert set(np.unique(labels)) <= {0, 48 * 96 + 48 + 1}
    assert n_owned == 1
    assert n_seen == (4 if radius_px == 5 else 16)


def test_table_holds_what_its_columns_say(rng):
    drawn, mask = one_disc((40, 40), (20, 17), 6, rng)
    drawn["id"][:] = 0
    drawn["id"][3] = 127
    labels, table, seen, *_ = whole_tables(drawn, settings(2), (4, 4))
    assert labels[20, 17] == 20 * 40 + 17 + 1
    row = {name: column[0] for name, column in table.items()}
    assert (row["gid"], row["seed_y"], row["seed_x"]) == (817, 20, 17)
    assert (row["centre_y"], row["centre_x"], row["area"]) == (20.0, 17.0, mask.sum())
    assert row["sigma_y"] == pytest.approx(6, rel=0.02)
    assert row["confidence"] == pytest.approx(30000 / 32767, rel=1e-3)
    assert [row[f"id_{channel}"] for channel in range(16)] == [0, 0, 0, 1] + [0] * 12
    y, x = np.nonzero(mask)
    assert [seen[f"min_{a}"][0] for a in "yx"] == [y.min(), x.min()]
    assert [seen[f"max_{a}"][0] for a in "yx"] == [y.max(), x.max()]


def test_checksum_is_the_sum_of_splitmix64_of_the_voxel_indices(rng):
    drawn, mask = one_disc((40, 40), (20, 17), 3, rng)
    total = 0
    for index in np.flatnonzero(mask).tolist():
        value = (index + 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        total += value ^ (value >> 31)
    assert int(whole_tables(drawn, settings(2), (4, 4))[2]["checksum"][0]) == total % 2**64


@pytest.mark.parametrize("shape", [(20, 30), (5, 20, 30)])
def test_no_foreground_gives_background_and_tables_without_rows(shape):
    id_stride = (1, 4, 4)[-len(shape) :]
    drawn = drawn_outputs.empty(shape, id_stride)
    labels, table, seen, *_ = whole_tables(drawn, settings(len(shape)), id_stride)
    assert not labels.any()
    assert labels.dtype == np.uint64
    full = drawn_outputs.ellipsoids(shape, id_stride, np.random.default_rng(0), n=9)
    _, like, seen_like, *_ = whole_tables(full, settings(len(shape)), id_stride)
    for found, wanted in ((table, like), (seen, seen_like)):
        assert {n: c.dtype for n, c in found.items()} == {n: c.dtype for n, c in wanted.items()}
        assert all(len(column) == 0 for column in found.values())


def test_a_hole_at_the_border_of_the_image_is_not_filled(rng):
    drawn = drawn_outputs.empty((12, 12), (4, 4))
    mask = np.zeros((12, 12), dtype=bool)
    mask[0:5, 2:9] = True
    mask[0:3, 4:7] = False
    mask[7:12, 2:7] = True
    mask[9, 4] = False
    drawn_outputs.add_object(
        drawn, mask & (np.indices(mask.shape)[0] < 6), (4, 5), (3, 5), (9, 9), rng
    )
    drawn_outputs.add_object(
        drawn, mask & (np.indices(mask.shape)[0] > 6), (8, 3), (40, 5), (9, 9), rng
    )
    labels = clustering.label_array(drawn, settings(2), (4, 4))
    mask[9, 4] = True
    np.testing.assert_array_equal(labels > 0, mask)


def test_a_network_without_identity_branch_gives_the_same_labels(rng):
    drawn = drawn_outputs.ellipsoids((60, 60), (4, 4), rng, n=12)
    expected = clustering.label_array(drawn, settings(2), (4, 4))
    del drawn["id"]
    np.testing.assert_array_equal(clustering.label_array(drawn, settings(2), None), expected)


def test_bounds_that_do_not_hold_are_an_error(rng):
    drawn = drawn_outputs.ellipsoids((60, 60), (4, 4), rng, n=12)
    chosen = settings(2)
    right = clustering.largest(drawn, chosen)
    core = (slice(0, 60), slice(0, 60))
    for wrong in (clustering.Bounds((1, 1), right.lsig), clustering.Bounds(right.off, (0, 0))):
        with pytest.raises(InputError, match="exceeds the maximum"):
            clustering.label_window(
                drawn_outputs.reader(drawn), core, (60, 60), chosen, wrong, (4, 4)
            )


def test_tables_of_costs_are_the_same_on_every_machine():
    assert zlib.crc32(WEIGHT.astype("<i8").tobytes()) == 1155373671
    assert zlib.crc32(clustering.PHI.astype("<i8").tobytes()) == 2386092535


def test_extreme_outputs_do_not_overflow(rng):
    drawn = drawn_outputs.noise((40, 40), (4, 4), rng)
    drawn["off"][:] = rng.choice([-32767, 0, 32767], size=drawn["off"].shape)
    drawn["lsig"][:] = rng.choice([0, 255], size=drawn["lsig"].shape)
    chosen = settings(2, phi=0.01, suppress=0.01, smooth=3, min_size=1)
    found = clustering.label_array(drawn, chosen, (4, 4))
    np.testing.assert_array_equal(found, literal_labels(drawn, chosen, (4, 4)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0.5}, "unknown key 'seeds'; did you mean 'seed'"),
        ({"fg": 0.05}, "fg is 0.05, needs a number from 0.1 to 1"),
        ({"phi": "high"}, "phi is 'high', needs a number"),
        ({"phi": math.nan}, "phi is nan"),
        ({"smooth": 1.5}, "smooth is 1.5, needs a whole number from 0 to 3"),
        ({"min_size": True}, "min_size is 'True'"),
        ({"seed_window": [1, 2, 3]}, "seed_window has 3 numbers, needs one or 2"),
        ({"seed_window": 0}, "seed_window is 0, needs a whole number from 1 to 64"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_needs(values, message):
    with pytest.raises(InputError, match=message):
        clustering.Settings.from_dict(values, 2)


def test_settings_survive_their_way_through_json():
    chosen = settings(3, seed_window=[1, 2, 2], identity=0.25)
    assert clustering.Settings.from_dict(chosen.as_dict(), 3) == chosen
