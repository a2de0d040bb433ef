"""Small networks with random weights, and model files made of them."""

import torch
from torch import nn

from iaunet import backends, checkpoint, clustering, int8
from iaunet.net import IAUNet, dependency_radius

OPTIONS = {
    2: {"widths": [4, 6, 8, 8], "pools": [[2, 2]] * 3},
    3: {
        "widths": [4, 4, 6],
        "pools": [[1, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    },
}
BLOCK = {2: [64, 64], 3: [16, 32, 32]}


def constructor(ndim, emb_dim=0, n_classes=0):
    limits = {"max_offset": [20] * ndim, "max_sigma": [9] * ndim}
    heads = {"emb_dim": emb_dim, "n_classes": n_classes}
    return {"ndim": ndim, **OPTIONS[ndim], **limits, **heads}


def small_net(ndim, seed=0, emb_dim=0, n_classes=0):
    """Return a network whose statistics are not symmetric, as after training."""
    torch.manual_seed(seed)
    net = IAUNet(**constructor(ndim, emb_dim, n_classes))
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.normal_(net.head.weight, std=2.0)
    if n_classes:
        weight = net.heads["sem"].weight
        nn.init.normal_(weight, std=2.0)
        weight.data -= weight.data.mean(1, keepdim=True)  # features are positive
    return net.eval()


def largest_values(net, seed=0):
    """Return what calibration finds on random images."""
    generator = torch.Generator().manual_seed(seed)
    shape = [8 * step for step in net.stride]
    images = [torch.rand(1, 1, *shape, generator=generator) for _ in range(3)]
    return int8.largest_values(backends.folded(net), images)


def save_model(path, ndim, seed=0, classes=()):
    """Write a model file with random weights; its clustering finds a few objects."""
    net = small_net(ndim, seed, n_classes=len(classes))
    meta = {
        "name": path.stem,
        "ndim": ndim,
        "in_channels": 1,
        "net": constructor(ndim, n_classes=len(classes)),
        "classes": [{"name": name, "thing": thing} for name, thing in classes],
        "stride": list(net.stride),
        "id_stride": list(net.id_stride),
        "radius": list(dependency_radius(net)),
        "block": BLOCK[ndim],
        "normalize": {"percentiles": [1, 99.8]},
        "max_offset": [20] * ndim,
        "max_sigma": [9] * ndim,
        "clustering": clustering.Settings.from_dict({"min_size": 4}, ndim).as_dict(),
    }
    checkpoint.save(path, net.state_dict(), meta)
    return path
