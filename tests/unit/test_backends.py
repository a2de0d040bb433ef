"""Every way to compute a network gives the same answer, for any tiling."""

import numpy as np
import pytest
import torch

import nets
from iaunet import backends, extras, grid, int8, predict
from iaunet.errors import InputError, OptionError

WAYS = [
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch", "int8"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
]
CPU = torch.device("cpu")


def engine(ndim, backend, precision, threads=1):
    if backend != "torch":
        pytest.importorskip(backend)
    net = nets.small_net(ndim)
    if precision == "int8":
        needs_int8()
        net.largest = nets.largest_values(net)
    return backends.prepare(net, backend, precision, CPU, threads)


def needs_int8():
    if not int8.is_quick(CPU):
        pytest.skip("this processor does not compute in int8")


def blocks(net, image, threads=1):
    return predict.Blocks(
        net,
        lambda box: image[box],
        shape=image.shape,
        block_px=[2 * step for step in net.stride],
        halo_px=[3 * step for step in net.stride],
        threads=threads,
    )


@pytest.mark.parametrize(("backend", "precision"), WAYS)
@pytest.mark.parametrize("shape", [(70, 90), (20, 40, 44)], ids=["2d", "3d"])
def test_neither_tiles_nor_threads_change_a_bit(shape, backend, precision, rng):
    image = rng.random(shape, np.float32)
    whole = tuple(slice(0, n) for n in shape)
    net = engine(len(shape), backend, precision)
    (expected,) = blocks(net, image).of_cores([whole])
    net = engine(len(shape), backend, precision, threads=2)
    core = [3 * step for step in net.stride]
    cores = [tile.core for tile in grid.tiles(shape, core)]
    for box, found in zip(cores, blocks(net, image, 2).of_cores(cores), strict=True):
        for name in ("fg", "seed", "off", "lsig"):
            np.testing.assert_array_equal(found[name], expected[name][(..., *box)], err_msg=name)


@pytest.mark.parametrize(("backend", "precision"), WAYS[1:])
@pytest.mark.parametrize("ndim", [2, 3])
def test_all_ways_agree_within_their_precision(ndim, backend, precision, rng):
    shape = (16, 32, 32)[-ndim:]
    x = torch.from_numpy(rng.random((1, 1, *shape), np.float32))
    with torch.inference_mode():
        expected = engine(ndim, "torch", "float32")(x)
        found = engine(ndim, backend, precision)(x)
    least = 1e-4 if precision == "float32" else 0.2
    for name in ("fg", "seed", "off", "lsig", "id"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=least, msg=name)


@pytest.mark.parametrize("ndim", [2, 3])
def test_without_its_batchnorms_a_network_is_the_same_to_rounding(ndim, rng):
    x = torch.from_numpy(rng.random((1, 1, *(16, 32, 32)[-ndim:]), np.float32))
    net = nets.small_net(ndim)
    with torch.inference_mode():
        before = net(x)
        for one, other in zip(backends.folded(net)(x), before, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
        assert torch.equal(net(x).fg, before.fg)
    assert not [m for m in backends.folded(net).modules() if hasattr(m, "running_mean")]
    assert [m for m in net.modules() if hasattr(m, "running_mean")]


def test_writing_onnx_leaves_the_network_as_it_was(rng):
    pytest.importorskip("onnx")
    net = nets.small_net(2)
    x = torch.from_numpy(rng.random((1, 1, 32, 32), np.float32))
    with torch.inference_mode():
        before = net(x).fg
        backends.to_onnx(net)
        assert torch.equal(net(x).fg, before)


def test_a_backend_that_is_not_installed_names_the_line_to_type(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install --requirement requirements-backends\.txt"):
        backends.prepare(nets.small_net(2), "openvino", "auto", CPU, 1)


def test_backends_of_the_cpu_refuse_other_devices():
    with pytest.raises(OptionError, match="--device cpu"):
        backends.prepare(nets.small_net(2), "onnxruntime", "auto", torch.device("meta"), 1)


def test_auto_is_int8_for_calibrated_models_alone():
    needs_int8()
    net = nets.small_net(2)
    assert backends.prepare(net, "auto", "auto", CPU, 1).precision != "int8"
    with pytest.raises(OptionError, match=r"not calibrated for it; use auto, or calibrate\.py"):
        backends.prepare(net, "torch", "int8", CPU, 1)
    net.largest = nets.largest_values(net)
    assert backends.prepare(net, "auto", "auto", CPU, 1).precision == "int8"
    with pytest.raises(OptionError, match="openvino does not compute in int8; use torch"):
        backends.prepare(net, "openvino", "int8", CPU, 1)


def test_a_processor_without_int8_computes_otherwise_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    net = nets.small_net(2)
    net.largest = nets.largest_values(net)
    assert backends.prepare(net, "auto", "auto", CPU, 1).precision == "float32"
    with pytest.raises(OptionError, match="cpu does not compute so"):
        backends.prepare(net, "torch", "int8", CPU, 1)
