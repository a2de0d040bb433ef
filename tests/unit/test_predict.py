import numpy as np
import pytest
import torch

from iaunet import fixedpoint, grid, predict
from iaunet.net import dependency_radius
from nets import BLOCK, small_net

SHAPE = {2: (150, 137), 3: (21, 70, 66)}
CORES = {2: [(8, 8), (40, 24), (64, 64), (152, 144)], 3: [(4, 16, 16), (16, 32, 32), (24, 72, 72)]}


def exact_halo(net):
    return tuple(-(-r // s) * s for r, s in zip(dependency_radius(net), net.stride, strict=True))


def blocks_of(net, image, threads=1, block=None):
    ndim = image.ndim
    return predict.Blocks(
        net,
        lambda box: image[box],
        shape=image.shape,
        block_px=block or BLOCK[ndim],
        halo_px=exact_halo(net),
        threads=threads,
    )


def assembled(net, image, core_px, **options):
    """Rebuild the whole image's outputs from the cores of a tiling."""
    whole = {}
    tiles = list(grid.tiles(image.shape, core_px))
    found = blocks_of(net, image, **options).of_cores([tile.core for tile in tiles])
    for tile, outputs in zip(tiles, found, strict=True):
        for name, array in outputs.items():
            box = grid.cells_of(tile.core, net.id_stride) if name == "id" else tile.core
            shape = (
                [-(-n // s) for n, s in zip(image.shape, net.id_stride, strict=True)]
                if name == "id"
                else image.shape
            )
            lead = array.shape[: array.ndim - image.ndim]
            whole.setdefault(name, np.zeros((*lead, *shape), array.dtype))[(..., *box)] = array
    return whole


@pytest.mark.parametrize(("ndim", "heads"), [(2, 0), (3, 0), (2, 3), (3, 2)])
def test_neither_tiles_nor_threads_change_one_bit_of_the_outputs(ndim, heads, rng):
    net = small_net(ndim, emb_dim=heads, n_classes=heads)
    image = rng.normal(0.4, 0.4, SHAPE[ndim]).astype(np.float32)
    first = None
    for k, core in enumerate(CORES[ndim]):
        found = assembled(net, image, core, threads=1 + k % 3)
        first = first or found
        for name, array in first.items():
            np.testing.assert_array_equal(array, found[name], err_msg=f"{name}, core {core}")
    assert first["fg"].std() > 1
    assert ("emb" in first) == ("sem" in first) == bool(heads)
    if heads:
        assert len(np.unique(first["sem"])) > 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_blocks_give_what_the_network_gives_for_the_whole_image(ndim, rng):
    net = small_net(ndim)
    image = rng.normal(0.4, 0.4, SHAPE[ndim]).astype(np.float32)
    tiled = assembled(net, image, CORES[ndim][1])
    whole = predict.whole(net, image)
    for name, array in whole.items():
        # Kernels may add in another order for another window: the last bit of a float, hence
        # at most the last step of a fixed-point number.
        away = np.abs(array.astype(int) - tiled[name])
        hidden = (array == 0) != (tiled[name] == 0)
        assert away[~hidden].max(initial=0) <= 1, name
        assert hidden.mean() < 1e-4, name


@pytest.mark.parametrize("ndim", [2, 3])
def test_windows_of_one_value_are_computed_once_and_change_no_bit(ndim, rng, monkeypatch):
    net = small_net(ndim)
    shape = tuple(4 * n for n in SHAPE[ndim])
    image = np.full(shape, 0.25, np.float32)
    some = tuple(slice(0, n) for n in BLOCK[ndim])
    image[some] = rng.normal(0.4, 0.4, BLOCK[ndim])
    cores = [tile.core for tile in grid.tiles(shape, BLOCK[ndim])]
    blocks = blocks_of(net, image)
    reused = list(blocks.of_cores(cores))
    again = blocks_of(net, image)
    monkeypatch.setattr(again, "_of_window", lambda image, inner, _: again._evaluated(image, inner))
    for found, wanted in zip(reused, again.of_cores(cores), strict=True):
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    assert 0 < blocks.n_reused < len(cores)
    assert blocks.voxels_computed < again.voxels_computed


def test_every_block_is_computed_once_and_few_are_ahead(rng):
    blocks = blocks_of(small_net(2), rng.normal(size=(300, 260)).astype(np.float32))
    asked, compute = [], blocks.compute
    blocks.compute = lambda index: asked.append(index) or compute(index)
    cores = [tile.core for tile in grid.tiles(blocks.shape, (48, 48))]
    needed = [grid.tiles_meeting(blocks.padded, blocks.block_px, core) for core in cores]
    wanted = set()
    for indices, _ in zip(needed, blocks.of_cores(cores), strict=True):
        wanted |= set(indices)
        assert len(set(asked) - wanted) <= 2
    assert sorted(asked) == sorted(wanted)


def test_a_halo_below_the_radius_does_change_the_outputs(rng):
    net = small_net(2)
    image = rng.normal(0.4, 0.4, SHAPE[2]).astype(np.float32)
    exact = assembled(net, image, (64, 64))
    blocks = predict.Blocks(
        net,
        lambda box: image[box],
        shape=image.shape,
        block_px=BLOCK[2],
        halo_px=net.stride,
        threads=1,
    )
    near = next(blocks.of_cores([(slice(0, 64), slice(0, 64))]))
    assert (near["fg"] != exact["fg"][:64, :64]).any()


def test_an_image_smaller_than_the_stride_has_outputs(rng):
    net = small_net(2)
    found = assembled(net, rng.normal(size=(3, 5)).astype(np.float32), (8, 8))
    assert found["fg"].shape == (3, 5)
    assert found["id"].shape == (16, 1, 2)


def test_outputs_are_hidden_exactly_where_there_is_no_foreground(rng):
    fixed = {
        "fg": rng.integers(0, 60, (8, 8)).astype(np.uint8),
        "seed": np.full((8, 8), 9, np.int16),
        "off": np.full((2, 8, 8), -5, np.int16),
        "lsig": np.full((2, 8, 8), 7, np.uint8),
        "id": np.full((16, 2, 2), 3, np.int8),
        "emb": np.full((4, 8, 8), -9, np.int16),
    }
    fixed["fg"][:4, 4:] = 0
    tensors = {name: torch.from_numpy(values) for name, values in fixed.items()}
    shown = {name: one.numpy() for name, one in predict.hide_background(tensors).items()}
    background = fixed["fg"] < fixedpoint.FG_FLOOR
    for name in ("seed", "off", "lsig", "emb"):
        assert shown[name].dtype == fixed[name].dtype
        assert (shown[name][..., background] == 0).all()
        assert (shown[name][..., ~background] == fixed[name][..., ~background]).all()
    assert (shown["id"][:, 0, 1] == 0).all()
    assert (shown["id"][:, 0, 0] == 3).all()


def short_of_memory(net, most_voxels=None, most_at_a_time=None):
    """Let the network need too much memory for large windows, or for several at a time."""
    running, forward = [], net.forward

    def guarded(x, **options):
        running.append(x)
        try:
            many = most_at_a_time is not None and len(running) > most_at_a_time
            if many or (most_voxels is not None and x.numel() > most_voxels):
                raise torch.OutOfMemoryError("pretended")
            return forward(x, **options)
        finally:
            running.pop()

    net.forward = guarded
    return net


@pytest.mark.parametrize("ndim", [2, 3])
def test_fewer_blocks_at_a_time_for_lack_of_memory_change_no_bit(ndim, rng):
    image = rng.normal(0.4, 0.4, SHAPE[ndim]).astype(np.float32)
    expected = assembled(small_net(ndim), image, CORES[ndim][1])
    net = short_of_memory(small_net(ndim), most_at_a_time=1)
    found = assembled(net, image, CORES[ndim][1], threads=4)
    for name, array in expected.items():
        np.testing.assert_array_equal(array, found[name], err_msg=name)


@pytest.mark.parametrize("shape", [(256, 64), (16, 192, 32)], ids=["2d", "3d"])
def test_a_block_too_large_for_the_memory_is_computed_in_halves(shape, rng, caplog):
    image = rng.normal(0.4, 0.4, shape).astype(np.float32)
    expected = assembled(small_net(len(shape)), image, shape, block=shape)
    net = short_of_memory(small_net(len(shape)), most_voxels=image.size - 1)
    found = assembled(net, image, shape, block=shape, threads=2)
    assert f"out of memory with one block of {shape} px; going on with its halves" in caplog.text
    for name, array in expected.items():
        # Another window may add in another order, as above.
        assert np.mean(np.abs(array.astype(int) - found[name]) > 1) < 1e-4, name


def test_a_block_that_never_fits_fails_and_says_why(rng):
    net = short_of_memory(small_net(2), most_voxels=10)
    blocks = blocks_of(net, rng.normal(size=(70, 70)).astype(np.float32), threads=2)
    (found,) = blocks.of_cores([(slice(0, 64), slice(0, 64))])
    assert "OutOfMemoryError: no memory for" in found.cause
    assert "pretended" in found.cause


def test_outputs_that_are_nan_fail_their_cores_and_no_others(rng):
    image = rng.normal(0.4, 0.4, (60, 300)).astype(np.float32)
    net = small_net(2)
    cores = [tile.core for tile in grid.tiles(image.shape, (64, 64))]
    expected = list(blocks_of(net, image).of_cores(cores))
    image[10, 290] = np.nan
    found = list(blocks_of(net, image).of_cores(cores))
    assert "FloatingPointError: the network's output is NaN" in found[-1].cause
    np.testing.assert_array_equal(expected[0]["fg"], found[0]["fg"])


def test_a_halo_off_the_stride_is_our_mistake():
    with pytest.raises(ValueError, match=r"halo .* no multiple of stride"):
        predict.Blocks(
            small_net(2), None, shape=(9, 9), block_px=(64, 64), halo_px=(7, 8), threads=1
        )


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match="'cuda:0' is not there: 0 CUDA devices"):
        predict.pick_device("cuda:0")
    assert predict.pick_device("auto").type == "cpu"
