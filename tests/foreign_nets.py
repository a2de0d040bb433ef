"""Networks of other people: small ones in TorchScript, safe in tiles or not, and their packages."""

import hashlib
import io
import zipfile

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from iaunet import foreign
from nets import constructor, small_net

HEADS = ["fg=0:0", "seed=0:1", "off=0:2-3"]
OPTIONS = ["--ndim", "2", "--stride", "2", "--scores", "logits", "--percentiles", "1", "99.8"]
OPTIONS += ["--max-offset", "20", "--max-sigma", "9", "--sigma", "4", "--block", "64"]


class Small(nn.Module):
    """One pooling, one upsampling, and a layer in the middle that may break exactness."""

    def __init__(self, middle=None, mode="nearest", pool=2):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(True))
        self.pool = nn.MaxPool2d(pool)
        self.middle = nn.Identity() if middle is None else middle
        self.up = nn.Upsample(scale_factor=pool, mode=mode)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.last(torch.cat([x, self.up(self.middle(self.pool(x)))], 1))


class Sized(Small):
    """Upsamples to the size of what it is joined with, as many U-Nets do."""

    def forward(self, x):
        x = self.first(x)
        y = F.interpolate(self.middle(self.pool(x)), size=x.shape[2:], mode="nearest")
        return self.last(torch.cat([x, y], 1))


class Squeeze(nn.Module):
    """Scales channels by their mean over the image."""

    def forward(self, x):
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class Attention(nn.Module):
    """Every voxel looks at all others."""

    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        q = x.flatten(2).transpose(1, 2)
        q = self.heads(q, q, q)[0]
        return x + q.transpose(1, 2).reshape(x.shape)


class Pooled(nn.Module):
    """Adds the mean over the image."""

    def __init__(self):
        super().__init__()
        self.whole = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return x + self.whole(x)


class Channels(nn.Module):
    """Looks at channels only, in ways that could be over space."""

    def forward(self, x):
        x = x.softmax(1) + F.normalize(x, dim=1) + x.mean(1, keepdim=True)
        return F.layer_norm(x.permute(0, 2, 3, 1), [6]).permute(0, 3, 1, 2)


class Place(nn.Module):
    """Adds the place within the tile."""

    def forward(self, x):
        return x + torch.arange(x.shape[3], dtype=torch.float32) / 100


class Frame(nn.Module):
    """Sees where the tile ends: a mean of ones and of zeros beyond."""

    def forward(self, x):
        return x * F.avg_pool2d(torch.ones_like(x), 3, 1, 1)


class Writes(nn.Module):
    """Writes a file: TorchScript can."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def forward(self, x):
        torch.save(x, self.path)
        return x


def script(net):
    """Return the TorchScript file of a network."""
    return content_of(torch.jit.script(net.eval()))


def trace(net, size=68):
    """Return the TorchScript file of a network, traced."""
    return content_of(torch.jit.trace(net, torch.rand(1, 1, size, size), check_trace=False))


def content_of(module):
    file = io.BytesIO()
    torch.jit.save(module, file)
    return file.getvalue()


def small(seed=0, **options):
    torch.manual_seed(seed)
    return Small(**options).eval()


class Named(nn.Module):
    """Our own network as others would export it: a tuple of five outputs."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        found = self.net(x)
        return found.fg, found.seed, found.off, found.lsig, found.id


def native(ndim, seed=0):
    """Return our own network as TorchScript, and the options that describe it."""
    net = small_net(ndim, seed)
    x = torch.rand(1, 1, *(3 * s for s in net.stride))
    content = content_of(torch.jit.trace(Named(net), x, check_trace=False))
    known = constructor(ndim)
    facts = {
        "stride": list(net.stride),
        "heads": {"fg": "0", "seed": "1", "off": "2", "lsig": "3", "id": "4"},
        "scores": "logits",
        "max_offset": known["max_offset"],
        "max_sigma": known["max_sigma"],
    }
    return content, facts


def made(content, **facts):
    """Return the network of a TorchScript file, by default one like `Small`."""
    contract = {
        "ndim": 2,
        "stride": (2, 2),
        "heads": {"fg": "0:0", "seed": "0:1", "off": "0:2-3"},
        "scores": "logits",
        "max_offset": (20.0, 20.0),
        "max_sigma": (9.0, 9.0),
        "sigma": (4.0, 4.0),
    }
    return foreign.Foreign(content, foreign.Contract(**(contract | facts)), "net.pt")


def description(content, ndim=2, **changes):
    """Return an rdf.yaml of format 0.4 as a dict."""
    axes = "bczyx"[:2] + "zyx"[-ndim:]
    scale = {"mode": "per_sample", "axes": "zyx"[-ndim:]}
    scale |= {"min_percentile": 1.0, "max_percentile": 99.8}
    return {
        "format_version": "0.4.9",
        "type": "model",
        "name": "their nuclei",
        "license": "CC-BY-4.0",
        "inputs": [
            {
                "name": "raw",
                "axes": axes,
                "data_type": "float32",
                "shape": {"min": [1, 1, *[16] * ndim], "step": [0, 0, *[8] * ndim]},
                "preprocessing": [{"name": "scale_range", "kwargs": scale}],
            }
        ],
        "outputs": [
            {"name": name, "axes": axes, "halo": [0, 0, *[16] * ndim]}
            for name in ("fg", "seed", "off", "lsig", "id")
        ],
        "weights": {
            "torchscript": {"source": "net.pt", "sha256": hashlib.sha256(content).hexdigest()}
        },
        **changes,
    }


def package(path, content, described):
    """Write a package as a zip file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(described))
        archive.writestr("net.pt", content)
    return path
