"""What breaks exactness is named."""

import re

import pytest
import torch
from torch import nn

import foreign_nets
from foreign_nets import made
from iaunet import probing, safety
from iaunet.errors import InputError

CERTAIN = [
    (nn.GroupNorm(2, 6), "GroupNorm .*layer middle"),
    (nn.InstanceNorm2d(6), "InstanceNorm .*layer middle"),
    (nn.BatchNorm2d(6, track_running_stats=False), "BatchNorm in training mode .*layer middle"),
    (foreign_nets.Place(), "arange in layer middle"),
    (foreign_nets.Frame(), "ones_like in layer middle"),
]


@pytest.mark.parametrize("export", [foreign_nets.script, foreign_nets.trace])
@pytest.mark.parametrize(("middle", "says"), CERTAIN)
def test_a_layer_that_breaks_exactness_is_named(export, middle, says):
    (text,) = safety.findings(made(export(foreign_nets.small(middle=middle))))
    assert re.search(says, text), text
    assert "node %" in text


def test_bilinear_upsampling_is_named():
    (text,) = safety.findings(made(foreign_nets.script(foreign_nets.small(mode="bilinear"))))
    assert "bilinear upsampling" in text
    assert "layer up" in text


def test_batchnorm_that_was_traced_while_training_is_named():
    net = foreign_nets.small()
    net.first[1].train()
    (text,) = safety.findings(made(foreign_nets.trace(net)))
    assert "BatchNorm in training mode" in text
    assert "layer first.1" in text


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        (foreign_nets.Squeeze(), "statistics over the tile (mean in layer middle"),
        (foreign_nets.Attention(), "attention over space"),
        (foreign_nets.Pooled(), "pooling over the whole tile (adaptive_avg_pool2d in layer middle"),
    ],
)
def test_what_looks_at_the_whole_tile_has_no_radius_and_is_suspected(middle, says):
    net = made(foreign_nets.script(foreign_nets.small(middle=middle)))
    assert safety.findings(net) == []
    assert probing.radius(net) is None
    assert any(says in text for text in safety.suspects(net))


@pytest.mark.parametrize("export", [foreign_nets.script, foreign_nets.trace])
@pytest.mark.parametrize("make", [foreign_nets.Small, foreign_nets.Sized])
def test_a_network_that_looks_at_neighbours_and_channels_only_is_free_of_findings(export, make):
    net = made(export(make(middle=foreign_nets.Channels()).eval()))
    assert safety.findings(net) == []
    assert probing.radius(net) == (2, 2)


@pytest.mark.parametrize(
    ("pool", "says"),
    [(4, "misaligned stride: it steps by 4 over 66"), (3, "stride 3 is no power of two")],
)
def test_a_stride_that_does_not_fit_is_named(pool, says):
    (text, *_) = safety.findings(made(foreign_nets.script(foreign_nets.small(pool=pool))))
    assert says in text
    assert "max_pool2d in layer pool" in text


def test_a_network_of_another_dimension_is_told():
    with pytest.raises(InputError, match=r"fails on a window of shape \(1, 1, 34, 34, 34\)"):
        safety.findings(
            made(
                foreign_nets.script(foreign_nets.small()),
                ndim=3,
                **dict.fromkeys(("stride", "max_offset", "max_sigma", "sigma"), (2, 2, 2)),
            )
        )


def test_recording_changes_nothing():
    net = made(foreign_nets.script(foreign_nets.small()))
    x = torch.rand(1, 1, 16, 16)
    before = net.run(x)
    safety.executed(net, x)
    assert torch.equal(before, net.run(x))
