"""Fragments that touch become objects, the same for any tiling."""

import numpy as np
import pytest

import drawn_outputs
from iaunet import clustering, grid, joining, logistic
from iaunet.errors import InputError


def joiner(**weights):
    """Return a joiner with some weights and a constant; features are not standardised."""
    values = np.array([weights.get(name, 0.0) for name in ("constant", *joining.FEATURES)])
    n = len(joining.FEATURES)
    return joining.Joiner(logistic.Weights(np.zeros(n), np.ones(n), values))


def table(areas, vectors=None, gid=None):
    n = len(areas)
    vectors = np.ones((n, 1)) if vectors is None else np.array(vectors, float)
    return {
        "gid": np.arange(10, 10 + n, dtype=np.uint64) if gid is None else gid,
        "area": np.array(areas),
        "confidence": np.full(n, 0.5, np.float32),
        **{f"id_{k}": column for k, column in enumerate(vectors.T)},
    }


def touching(*pairs, faces=8):
    one, other = (np.array(side) + 10 for side in zip(*pairs, strict=True))
    n = len(pairs)
    found = joining.contacts(one, other, np.full((n, 2), [255, 16384]))
    return {**found, "faces": np.full(n, faces), "fg": np.full(n, 255 * faces)}


def join(fragments, contacts, model, least=0.5, min_size=1):
    return joining.join(fragments, contacts, model, least=least, min_size=min_size, ndim=2)


def test_a_chain_of_any_length_is_one_object_named_after_its_first_fragment():
    n = 500
    order = np.random.default_rng(0).permutation(n - 1)
    contacts = joining.added([touching((k, k + 1)) for k in order.tolist()])
    found = join(table([5] * n), contacts, joiner(constant=3.0))
    assert set(found.gid.tolist()) == {10}
    assert set(found.verdict) == {"joined"}


def test_unlikely_contacts_stay_apart():
    found = join(table([5, 5]), touching((0, 1)), joiner(constant=-3.0))
    assert found.gid.tolist() == [10, 11]
    assert found.verdict.tolist() == ["apart"]
    np.testing.assert_allclose(found.probability, 1 / (1 + np.exp(3)))


def test_the_weakest_contact_of_a_chain_between_opposite_identities_is_refused():
    # Neighbours are alike, but the two ends point apart: the weakest contact lies between.
    angles = np.radians([0, 45, 98, 143])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fragments = table([5] * 4, vectors)
    found = join(fragments, touching((0, 1), (1, 2), (2, 3)), joiner(cosine=1.0), least=0.01)
    assert found.verdict.tolist() == ["joined", "refused", "joined"]
    opposite = table([5] * 3, [[1, 0], [0.1, 1], [-1, 0.05]])
    found = join(opposite, touching((0, 1), (1, 2)), joiner(constant=2.0, cosine=1.0))
    assert found.verdict.tolist() == ["joined", "refused"]
    assert found.gid.tolist() == [10, 10, 12]


def test_the_order_of_the_contacts_does_not_matter():
    rng = np.random.default_rng(1)
    n = 60
    vectors = rng.normal(size=(n, 3))
    pairs = {tuple(sorted(rng.choice(n, 2, replace=False).tolist())) for _ in range(150)}
    contacts = joining.added([touching(pair, faces=int(rng.integers(1, 30))) for pair in pairs])
    model = joiner(faces=0.8, cosine=2.0)
    fragments = table(rng.integers(1, 90, n), vectors)
    expected = join(fragments, contacts, model)
    order = rng.permutation(len(contacts["one"]))
    shuffled = {name: values[order] for name, values in contacts.items()}
    found = join(fragments, shuffled, model)
    assert len(set(expected.gid.tolist())) < n
    assert "refused" in expected.verdict
    np.testing.assert_array_equal(found.gid, expected.gid)
    np.testing.assert_array_equal(found.verdict, expected.verdict[order])


def test_small_objects_are_dropped_and_small_fragments_of_large_ones_are_not():
    found = join(table([2, 9, 3]), touching((0, 1)), joiner(constant=3.0), min_size=4)
    assert found.gid[:2].tolist() == [10, 10]
    assert found.gid[2] == joining.NO_OBJECT


def test_no_fragments_and_no_contacts_are_no_objects():
    none = joining.contacts(np.zeros(0), np.zeros(0), np.zeros((0, 2), np.int64))
    assert len(join(table([]), none, joiner()).gid) == 0
    assert join(table([7]), none, joiner()).gid.tolist() == [10]


def test_sums_over_tiles_are_those_of_the_whole(rng):
    faces = rng.integers(0, 5, (200, 2))
    one, other, weakest = faces.min(1), faces.max(1), rng.integers(0, 255, (200, 2))
    whole = joining.contacts(one, other, weakest)
    parts = [joining.contacts(one[k::3], other[k::3], weakest[k::3]) for k in range(3)]
    for name, values in joining.added(parts).items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize("shape", [(44, 120), (20, 44, 80)])
def test_an_object_longer_than_any_window_is_one_for_any_tiling(shape, rng):
    drawn = drawn_outputs.fibres(shape, rng)
    stride = (4,) * len(shape)
    chosen = clustering.Settings.from_dict({"join": 0.5, "min_size": 40, "seed": 0.3}, len(shape))
    model = joiner(constant=1.0, cosine=1.0)
    expected = clustering.label_array(drawn, chosen, stride, model)
    assert len(np.unique(expected[expected > 0])) == 2
    bounds = clustering.largest(drawn, chosen)
    far = clustering.reach(chosen, bounds)
    assert max(np.ptp(np.nonzero(expected == v)[-1]) for v in np.unique(expected) if v) > max(
        far.extent
    )
    for core in ((16,) * len(shape), (40,) * len(shape)):
        labels, tables, contacts = np.zeros(shape, np.uint64), [], []
        for tile in grid.tiles(shape, core):
            found = clustering.label_window(
                drawn_outputs.reader(drawn), tile.core, shape, chosen, bounds, stride
            )
            labels[tile.core] = found.labels
            tables.append(found.table)
            contacts.append(found.contacts)
        rows = {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}
        order = np.argsort(rows["gid"])
        rows = {name: column[order] for name, column in rows.items()}
        joined = joining.join(
            rows, joining.added(contacts), model, least=0.5, min_size=40, ndim=len(shape)
        )
        tiled = joining.renamed(labels, rows["gid"], joined.gid)
        np.testing.assert_array_equal(tiled, expected)


def test_weights_are_fitted_to_true_objects(rng):
    n = 400
    vectors = rng.normal(size=(n, 2))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(k, k + 1) for k in range(n - 1)]
    fragments, contacts = table([9] * n, vectors), touching(*pairs)
    cosine = (vectors[1:] * vectors[:-1]).sum(1)
    # Neighbours are of one object where their vectors are alike.
    true = np.concatenate([[1], 1 + np.cumsum(cosine < 0.3)])
    fitted = joining.fit([(fragments, contacts, true)], 2)
    found = fitted.probability(joining.features(fragments, contacts, 2)) > 0.5
    assert np.mean(found == (cosine >= 0.3)) > 0.95
    again = joining.Joiner.from_dict(fitted.as_dict())
    np.testing.assert_array_equal(again.weights.weight, fitted.weights.weight)


def test_contacts_of_one_kind_only_or_of_unclear_fragments_teach_nothing():
    fragments, contacts = table([9, 9, 9]), touching((0, 1), (1, 2))
    assert joining.fit([(fragments, contacts, np.array([1, 1, 1]))], 2) is None
    assert joining.fit([(fragments, contacts, np.array([1, 1, 0]))], 2) is None
    assert joining.fit([], 2) is None


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"features": ["faces"]},
        {"features": list(joining.FEATURES), "mean": [0], "spread": [1], "weight": [1]},
        {"features": list(joining.FEATURES), "mean": [0] * 5, "spread": [0] * 5, "weight": [1] * 6},
        {"features": list(joining.FEATURES), "mean": [0] * 5, "spread": [1] * 5, "weight": ["x"]},
    ],
)
def test_damaged_weights_are_told(values):
    with pytest.raises(InputError, match="joining"):
        joining.Joiner.from_dict(values)


def test_settings_that_join_need_weights():
    with pytest.raises(InputError, match="has no weights for it"):
        join(table([1]), touching((0, 0)), None)
