"""The measured context is that of the architecture; with less of it, outputs differ."""

import numpy as np
import pytest
from torch import nn

import foreign_nets
from foreign_nets import made
from iaunet import probing
from iaunet.net import dependency_radius
from nets import small_net


def own(ndim):
    content, facts = foreign_nets.native(ndim)
    return made(content, **(facts | {"ndim": ndim, "sigma": None}))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_measured_radius_of_our_network_is_the_computed_one(ndim):
    radius, stride = dependency_radius(small_net(ndim)), small_net(ndim).stride
    expected = tuple(-(-r // s) * s for r, s in zip(radius, stride, strict=True))
    assert probing.radius(own(ndim)) == expected


def test_windows_with_the_measured_halo_do_not_differ_and_with_less_they_do(rng):
    net = own(2)
    assert probing.id_stride(net) == (4, 4)
    net.id_stride = (4, 4)
    halo = probing.radius(net)
    for halo_px, least, most in ((halo, 0, probing.TOLERANCE), ((8, 8), 1, 1e6)):
        strips = [
            rng.random(shape, np.float32).clip(0, 1) for shape in probing.strip_shapes(net, halo_px)
        ]
        found = probing.differences(net, strips, halo_px)
        assert set(found) == {"fg", "seed", "off", "lsig", "id"}
        assert least <= probing.in_steps(found) <= most


def test_groupnorm_differs_in_tiles(rng):
    net = made(foreign_nets.script(foreign_nets.small(middle=nn.GroupNorm(2, 6))))
    strips = [rng.random(shape, np.float32) for shape in probing.strip_shapes(net, (16, 16))]
    assert probing.in_steps(probing.differences(net, strips, (16, 16))) > 1
