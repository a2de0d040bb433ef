"""The loops on tensors give the integers of the compiled ones; on the CPU, and on a GPU if any."""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import drawn_outputs
from iaunet import clustering, kernels, tensorkernels
from iaunet.tensorkernels import TensorKernels

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]
KINDS = {
    "ellipsoids": lambda shape, stride, rng: drawn_outputs.ellipsoids(shape, stride, rng, n=12),
    "rings": lambda shape, stride, rng: drawn_outputs.rings(shape, stride, rng, n=20),
    "noise": drawn_outputs.noise,
}
VARIANTS = [
    pytest.param({}, id="plain"),
    pytest.param({"identity": 0.7, "phi": 0.3, "suppress": 0.8, "seed": 0.1}, id="identity"),
    pytest.param({"smooth": 2, "seed_window": 1, "seed": 0.2, "min_size": 1}, id="smooth"),
    pytest.param({"join": 0.5, "suppress": 0.9, "phi": 0.2}, id="joining"),
]
SHAPES = [
    pytest.param((90, 85), (4, 4), id="2d"),
    pytest.param((14, 34, 38), (1, 4, 4), id="3d"),
    pytest.param((1, 40), (4, 4), id="one row"),
    pytest.param((1, 20, 30), (1, 4, 4), id="one plane"),
]


@pytest.fixture(params=DEVICES)
def loops(request):
    return TensorKernels(torch.device(request.param))


def both(drawn, chosen, id_stride, loops, core=None):
    """Return what compiled loops and those of a device make of drawn outputs."""
    shape = drawn["fg"].shape
    core = core or tuple(slice(0, length) for length in shape)
    bounds = clustering.largest(drawn, chosen)
    read = drawn_outputs.reader(drawn)
    return (
        clustering.label_window(read, core, shape, chosen, bounds, id_stride, loops=one)
        for one in (kernels, loops)
    )


def assert_same(expected, found):
    for one, other in zip(expected, found, strict=True):
        columns = one.items() if isinstance(one, dict) else [(None, one)]
        for name, values in columns:
            others = other if name is None else other[name]
            assert values.dtype == others.dtype, name
            np.testing.assert_array_equal(others, values)


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "id_stride"), SHAPES)
def test_a_device_gives_the_labels_and_tables_of_the_compiled_loops(
    kind, shape, id_stride, values, loops, rng
):
    drawn = KINDS[kind](shape, id_stride, rng)
    chosen = clustering.Settings.from_dict({"min_size": 2, **values}, len(shape))
    middle = tuple(slice(n // 4, max(3 * n // 4, 1)) for n in shape)
    for core in (None, middle):
        assert_same(*both(drawn, chosen, id_stride, loops, core))


PRETENDED = torch.device("cpu", 0)
"""Tensors that are made here or sent here lie on the CPU, whose device has no number."""


class Watch(TorchFunctionMode):
    """Fail where tensors of the pretended device meet those of the host, and where one is a float.

    A GPU would fail at the first; the second would leave the result to the order of sums.
    """

    def __init__(self):
        super().__init__()
        self.n_there = 0

    def __torch_function__(self, function, _, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        there = {getattr(one, "there", False) for one in given if isinstance(one, torch.Tensor)}
        assert len(there) <= 1, f"{function} of tensors here and there"
        name, is_there = function.__name__, there == {True} or (not there and PRETENDED in given)
        result = function(*args, **kwargs)
        if name == "numpy":
            assert not is_there
        if isinstance(result, torch.device):
            return PRETENDED if is_there else result
        if name == "to" and any(isinstance(one, torch.device) for one in given):
            is_there = PRETENDED in given
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                one.there = is_there and name != "cpu"
                self.n_there += one.there
                assert not (one.there and one.is_floating_point()), function
        return result


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize(("shape", "id_stride"), SHAPES[:2])
def test_all_is_computed_on_one_device_and_on_integers(shape, id_stride, values, rng):
    drawn = drawn_outputs.rings(shape, id_stride, rng, n=20)
    chosen = clustering.Settings.from_dict({"min_size": 2, **values}, len(shape))
    with Watch() as watch:
        expected, found = both(drawn, chosen, id_stride, TensorKernels(PRETENDED))
    assert_same(expected, found)
    assert watch.n_there > 100


@pytest.mark.parametrize("ndim", [2, 3])
def test_nothing_changes_when_few_voxels_are_computed_at_a_time(ndim, loops, rng, monkeypatch):
    monkeypatch.setattr(tensorkernels, "AT_ONCE", 37)
    shape, id_stride = (8, 30, 30)[-ndim:], (1, 4, 4)[-ndim:]
    drawn = drawn_outputs.ellipsoids(shape, id_stride, rng, n=12)
    chosen = clustering.Settings.from_dict({"min_size": 2, "identity": 0.5}, ndim)
    expected, found = both(drawn, chosen, id_stride, loops)
    assert len(expected.table["gid"]) > 2
    assert_same(expected, found)


def test_extreme_outputs_do_not_overflow(loops, rng):
    drawn = drawn_outputs.noise((40, 40), (4, 4), rng)
    drawn["off"][:] = rng.choice([-32767, 0, 32767], size=drawn["off"].shape)
    drawn["lsig"][:] = rng.choice([0, 255], size=drawn["lsig"].shape)
    values = {"phi": 0.01, "suppress": 0.01, "smooth": 3, "min_size": 1, "identity": 100}
    assert_same(*both(drawn, clustering.Settings.from_dict(values, 2), (4, 4), loops))


def test_an_object_alone_and_a_network_without_identity_branch(loops, rng):
    drawn = drawn_outputs.ellipsoids((30, 30), (4, 4), rng, n=1, radius_px=(8, 9))
    del drawn["id"]
    expected, found = both(drawn, clustering.Settings.from_dict({"seed": 0.1}, 2), None, loops)
    assert len(expected.table["gid"]) == 1
    assert_same(expected, found)


@pytest.mark.parametrize("shape", [(1, 9, 11), (5, 6, 7), (1, 1, 4)])
def test_seeds_are_the_same_for_scores_of_all_16_bits_with_ties(shape, loops, rng):
    score = rng.choice(np.array([0, 1, 32767, 32768, 65535], np.uint16), size=shape)
    fg = rng.integers(0, 256, shape).astype(np.uint8)
    window, first = np.array([0, 2, 3]), np.zeros(3, np.int64)
    for _ in range(3):
        found = loops.find_seeds(score, fg, 1, 128, window, first)
        expected = kernels.find_seeds(kernels.box_sum(score), fg, 1, 128, window, first)
        smooth = loops.box_sum(score)
        np.testing.assert_array_equal(smooth.cpu().numpy(), kernels.box_sum(score))
        np.testing.assert_array_equal(loops.find_seeds(smooth, fg, 1, 128, window, first), expected)
        np.testing.assert_array_equal(found, kernels.find_seeds(score, fg, 1, 128, window, first))
        np.testing.assert_array_equal(loops.at(score, found), kernels.at(score, found))
        score = np.roll(score, 1, axis=2)


def cleaned(owner, ndim, loops, least):
    """Return owners whose objects keep one part, and whose holes are filled, by both loops."""
    margin = np.array([ndim - 2, 1, 1])
    inside = np.pad(owner, [(int(m),) * 2 for m in margin]).astype(np.int32)
    n = int(owner.max())
    seeds = np.full((n, 3), -1)  # the last voxel of each object
    for place in np.argwhere(inside):
        seeds[inside[tuple(place)] - 1] = place
    there = loops.nobody(inside.shape)
    there += torch.from_numpy(inside).to(there.device)
    for one, owners in ((kernels, inside), (loops, there)):
        one.keep_component(owners, seeds, margin, least)
        one.fill_holes(owners, n, margin)
    return inside, there.cpu().numpy()


@pytest.mark.parametrize("n_labels", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 40, 45), (9, 12, 14)])
@pytest.mark.parametrize("share", [0.3, 0.65, 0.9])
def test_parts_and_holes_of_scattered_labels_are_the_same(shape, share, n_labels, loops, rng):
    ndim = 2 if shape[0] == 1 else 3
    owner = rng.integers(1, n_labels + 1, shape) * (rng.random(shape) < share)
    for least in (1, 8):
        np.testing.assert_array_equal(*cleaned(owner, ndim, loops, least))


def test_holes_of_nested_and_touching_objects_are_the_same(loops):
    y, x = np.indices((41, 41)) - 20
    far = np.maximum(abs(y), abs(x))
    owner = np.zeros((41, 41), int)
    # From within: a dot, rings around each other, the outermost of two objects.
    for label, ring in ((6, far <= 1), (1, far == 4), (5, far == 7), (2, far == 10)):
        owner[ring] = label
    owner[far == 13] = 3
    owner[(far == 13) & (y > 0)] = 4
    expected, found = cleaned(owner[None], 2, loops, 1)
    np.testing.assert_array_equal(found, expected)
    assert set(np.unique(expected)) == {-2, -1, *range(7)}


def test_a_spiral_is_one_part_however_long(loops):
    owner = np.zeros((61, 61), int)
    at, step, length = np.array([30, 30]), np.array([0, 1]), 2
    owner[30, 30] = 1
    while length < 58:
        for _ in range(2):
            for _ in range(length):
                at += step
                owner[tuple(at)] = 1
            step = np.array([step[1], -step[0]])
        length += 2
    owner[0, 0] = 1  # apart
    owner[60, 60] = 2
    expected, found = cleaned(owner[None], 2, loops, 1)
    np.testing.assert_array_equal(found, expected)
    assert (found == 1).sum() > 1500


def test_boxes_and_checksums_are_the_same_far_inside_a_large_image(loops, rng):
    owner = np.pad(rng.integers(-3, 4, (4, 9, 10)), 1).astype(np.int32)
    there = loops.nobody(owner.shape)
    there += torch.from_numpy(owner).to(there.device)
    margin = np.ones(3, int)
    inner, image_shape = np.array([9000, 90_000, 10**6]), np.array([10**4, 10**5, 2 * 10**6])
    expected = kernels.see_objects(owner, 3, inner, margin, image_shape)
    found = loops.see_objects(there, 3, inner, margin, image_shape)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(other, one)


def test_a_window_is_labelled_on_the_cpu_when_the_device_has_too_little_memory(caplog):
    def work(loops):
        if loops is not kernels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return "labelled"

    assert tensorkernels.on_device(torch.device("cpu"), work, "tile 3") == "labelled"
    assert "tile 3: out of memory on cpu, labelled on the CPU; nothing changes" in caplog.text


def test_other_errors_of_a_device_are_not_hidden():
    def work(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        tensorkernels.on_device(torch.device("cpu"), work, "tile 3")


def test_threads_share_the_memory_of_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 << 30, 16 << 30))
    found = [tensorkernels.most_voxels(PRETENDED, threads) for threads in (1, 2, 100)]
    assert found[0] * tensorkernels.VOXEL_BYTES < 8 << 30
    assert 2 * found[1] < found[0]
    assert found[2] == 0
