"""A network in whole numbers is the sum of whole products that its steps say."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
from iaunet import backends, int8
from iaunet.net import CONV, LAST

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not int8.is_quick(CPU), reason="this processor has no VNNI")
LOOSE = 0.51
"""Half a step, and the last digit of float32."""


def conv_of(ndim, fan_in, width, kernel, seed=0):
    torch.manual_seed(seed)
    conv = CONV[ndim](fan_in, width, kernel, padding=kernel // 2)
    nn.init.normal_(conv.bias)
    return conv


def steps_of(n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 0.05 + 0.001


def bytes_of(fan_in, ndim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, fan_in, *(6, 11, 13)[-ndim:])
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return values.contiguous(memory_format=LAST[ndim])


def slowly(x, weight, bias, taken, given):
    """Return a convolution by its definition: whole weights of one step per channel, in float64.

    In steps of what is given.
    """
    ones = [1] * (weight.ndim - 2)
    weight = weight.detach().double() * taken.double().view(1, -1, *ones)
    scale = weight.flatten(1).abs().amax(1).view(-1, 1, *ones) / 127
    whole = (weight / scale).round()
    conv = {2: F.conv2d, 3: F.conv3d}[len(ones)]
    sums = conv(x.double(), whole, padding=weight.shape[-1] // 2)
    real = sums * scale.view(1, -1, *ones)
    if bias is not None:
        real = real + bias.detach().double().view(1, -1, *ones)
    return real / given.double().view(1, -1, *ones)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("fan_in", "width", "kernel"), [(3, 5, 3), (16, 16, 3), (33, 7, 1)])
def test_a_convolution_is_the_sum_of_whole_products(ndim, fan_in, width, kernel):
    conv, x = conv_of(ndim, fan_in, width, kernel), bytes_of(fan_in, ndim)
    taken, given = steps_of(fan_in, 1), steps_of(width, 2) * 40
    expected = slowly(x, conv.weight, conv.bias, taken, given)
    found = int8.Conv(conv, taken, given, torch.uint8)(x)
    assert found.dtype == torch.uint8
    assert (found.double() - expected.clamp(0, 255)).abs().max() <= LOOSE
    found = int8.Conv(conv, taken, torch.ones(width), torch.float32)(x)
    expected = slowly(x, conv.weight, conv.bias, taken, torch.ones(width))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("has_conv", [True, False])
def test_a_shortcut_adds_before_it_rounds(ndim, has_conv, rng):
    fan_in, width = (16, 8) if has_conv else (8, 8)
    conv = conv_of(ndim, fan_in, width, 1) if has_conv else None
    weight = conv.weight if has_conv else torch.eye(width).view(width, width, *[1] * ndim)
    x, taken, given = bytes_of(fan_in, ndim), steps_of(fan_in, 1), steps_of(width, 2) * 40
    more = torch.from_numpy(rng.normal(0, 60, (1, width, *x.shape[2:]))).bfloat16()
    more = more.contiguous(memory_format=LAST[ndim])
    expected = slowly(x, weight, None, taken, given) + more.double()
    found = int8.Shortcut(conv, taken, given, torch.uint8)(x, more)
    assert (found.double() - expected.clamp(0, 255)).abs().max() <= LOOSE


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_first_convolution_rounds_to_the_nearest_step(ndim, rng):
    conv, given = conv_of(ndim, 1, 8, 3), steps_of(8, 3)
    x = torch.from_numpy(rng.normal(0.5, 1, (1, 1, *(6, 11, 13)[-ndim:]))).float()
    with torch.inference_mode():
        expected = conv.double()(x.double()) / given.double().view(1, -1, *[1] * ndim)
        found = int8.First(conv.float(), given)(x)
    assert (found.double() - expected.clamp(0, 255)).abs().max() <= LOOSE


@pytest.mark.parametrize("ndim", [2, 3])
def test_largest_values_are_those_of_all_images(ndim):
    net = backends.folded(nets.small_net(ndim))
    shape = [4 * step for step in net.stride]
    images = [torch.rand(1, 1, *shape), 3 * torch.rand(1, 1, *shape)]
    both, first, second = (int8.largest_values(net, i) for i in (images, images[:1], images[1:]))
    assert {name: len(values) for name, values in both.items()} == int8.channels(net)
    for name, values in both.items():
        assert values == np.maximum(first[name], second[name]).tolist()
        assert max(values) > 0
    assert not [m for m in net.modules() if m._forward_hooks]


def test_a_channel_that_was_never_above_0_stays_0():
    conv, taken = conv_of(2, 4, 6, 3), steps_of(4, 1)
    given = torch.full((6,), int8.LEAST_STEP)
    given[2:] = 0.05
    stage = int8.Conv(conv, taken, given, torch.uint8)
    read = int8.Conv(conv_of(2, 6, 3, 3), given, torch.ones(3), torch.float32)
    found = read(stage(bytes_of(4, 2)))
    assert found.isfinite().all()
    assert found.abs().max() < 100
