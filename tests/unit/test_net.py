import numpy as np
import pytest
import torch
from torch import nn

from iaunet.net import IAUNet, clamp, dependency_radius, of_box
from nets import constructor, small_net


@pytest.mark.parametrize("ndim", [2, 3])
def test_all_heads_come_from_one_forward_with_the_promised_shapes(ndim):
    net = small_net(ndim)
    shape = tuple(2 * s for s in net.stride)
    out = net(torch.randn(2, 1, *shape))
    assert out.fg.shape == out.seed.shape == (2, 1, *shape)
    assert out.off.shape == out.lsig.shape == (2, ndim, *shape)
    assert out.id.shape == (2, 16, *(n // s for n, s in zip(shape, net.id_stride, strict=True)))
    torch.testing.assert_close(out.id.norm(dim=1), torch.ones_like(out.id[:, 0]))


@pytest.mark.parametrize("ndim", [2, 3])
def test_identity_sees_no_feature_finer_than_its_stride(ndim):
    net = small_net(ndim).train()
    net(torch.randn(1, 1, *(2 * s for s in net.stride))).id[:, 0].sum().backward()
    finest = net.id_levels[0]
    for level, stage in enumerate(net.decoder):
        gradients = [p.grad for p in stage.parameters()]
        seen = any(g is not None and bool(g.any()) for g in gradients)
        assert seen == (level >= finest)


def test_identity_gradient_of_zero_leaves_the_trunk_alone():
    net = small_net(2).train()
    net(torch.randn(1, 1, 16, 16), id_gradient=0.0).id[:, 0].sum().backward()
    assert not any(bool(p.grad.any()) for p in net.encoder.parameters() if p.grad is not None)
    assert bool(net.id_out.weight.grad.any())


@pytest.mark.parametrize("ndim", [2, 3])
def test_outputs_of_an_aligned_box_depend_on_nothing_beyond_the_radius(ndim):
    net = small_net(ndim)
    radius = dependency_radius(net)
    shape = [s * (2 * -(-r // s) + 2) for r, s in zip(radius, net.stride, strict=True)]
    begin = [s * -(-r // s) for r, s in zip(radius, net.stride, strict=True)]
    core = tuple(slice(b, b + s) for b, s in zip(begin, net.stride, strict=True))
    cells = tuple(
        slice(c.start // s, c.stop // s) for c, s in zip(core, net.id_stride, strict=True)
    )
    x = torch.randn(1, 1, *shape)
    beyond = x + 10
    seen = tuple(slice(c.start - r, c.stop + r) for c, r in zip(core, radius, strict=True))
    beyond[(..., *seen)] = x[(..., *seen)]
    with torch.no_grad():
        one, other = net(x), net(beyond)
    for name in ("fg", "seed", "off", "lsig", "id"):
        box = (..., *(cells if name == "id" else core))
        assert torch.equal(getattr(one, name)[box], getattr(other, name)[box]), name
    assert not torch.equal(one.fg, other.fg)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_radius_is_reached_along_every_axis(ndim):
    net = small_net(ndim)
    for module in net.modules():  # positive weights: no dependence can cancel or be clipped
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.constant_(module.weight, 0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.reset_parameters()
    net.double()
    for axis, radius in enumerate(dependency_radius(net)):
        shape = [4 * s for s in net.stride]
        step = net.stride[axis]
        begin = step * -(-radius // step)
        shape[axis] = 2 * begin + step
        x = torch.ones(1, 1, *shape, dtype=torch.double, requires_grad=True)
        core = [slice(None)] * net.ndim
        core[axis] = slice(begin, begin + step)
        net(x).fg[(0, 0, *core)].sum().backward()
        reached = np.flatnonzero(x.grad[0, 0].abs().movedim(axis, 0).flatten(1).sum(1).numpy())
        assert max(begin - reached[0], reached[-1] - (begin + step - 1)) <= radius
        assert max(begin - reached[0], reached[-1] - (begin + step - 1)) > radius - step


@pytest.mark.parametrize("ndim", [2, 3])
def test_shifting_the_image_by_the_stride_shifts_the_outputs(ndim):
    net = small_net(ndim)
    radius = dependency_radius(net)
    shape = [s * (2 * -(-r // s) + 3) for r, s in zip(radius, net.stride, strict=True)]
    x = torch.randn(1, 1, *shape)
    moved = x.roll(net.stride, tuple(range(2, 2 + ndim)))
    with torch.no_grad():
        one, other = net(x).off, net(moved).off
    begin = [s * -(-r // s) for r, s in zip(radius, net.stride, strict=True)]
    here = tuple(slice(b, b + s) for b, s in zip(begin, net.stride, strict=True))
    there = tuple(slice(b + s, b + 2 * s) for b, s in zip(begin, net.stride, strict=True))
    assert torch.equal(one[(..., *here)], other[(..., *there)])


def test_frozen_batchnorm_keeps_its_statistics():
    net = small_net(2).train()
    net.freeze_batchnorm()
    before = net.stem_norm.running_mean.clone()
    net(torch.randn(2, 1, 16, 16))
    assert torch.equal(before, net.stem_norm.running_mean)


def test_clamp_lets_the_gradient_through():
    x = torch.tensor([-9.0, 0.5, 9.0], requires_grad=True)
    y = clamp(x, torch.tensor(-1.0), torch.tensor(1.0))
    y.sum().backward()
    assert y.tolist() == [-1.0, 0.5, 1.0]
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": [(2, 2)] * 2}, "need 3 widths"),
        ({"pools": [(2, 3)] * 3}, "factors of 1 or 2"),
        ({"max_sigma": (9,)}, "max_sigma has 2 values"),
        ({"max_offset": (float("nan"), 3)}, "max_offset has 2 values"),
    ],
)
def test_impossible_networks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        IAUNet(**(constructor(2) | change))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_box_of_a_window_has_the_outputs_of_the_whole_window(ndim, rng):
    net = small_net(ndim, emb_dim=2, n_classes=2).double()
    shape = [6 * step for step in net.stride]
    x = torch.from_numpy(rng.normal(0.4, 0.4, (1, 1, *shape)))
    with torch.no_grad():
        whole = net(x)._asdict()
        for _ in range(12):
            ends = np.sort([rng.choice(7, 2, replace=False) for _ in shape])
            box = tuple(slice(a * s, b * s) for (a, b), s in zip(ends, net.stride, strict=True))
            expected = of_box(
                {name: a for name, a in whole.items() if a is not None}, box, net.id_stride
            )
            found = net.inside(x, box)._asdict()
            for name, values in expected.items():
                torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6, msg=name)


def test_the_finest_decoder_computes_little_more_than_the_box():
    net = small_net(2)
    sizes = []
    net.decoder[0].register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[2:]))
    shape = [9 * step for step in net.stride]
    net.inside(torch.zeros(1, 1, *shape), tuple(slice(4 * s, 5 * s) for s in net.stride))
    assert [tuple(size) for size in sizes] == [tuple(step + 4 for step in net.stride)]
