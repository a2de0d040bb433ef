"""The identity-aware U-Net (IAU-Net), whole, in one file, 2D and 3D.

A residual U-Net locates objects (mask, seed, offset and bandwidth at full resolution); an
auxiliary branch that sees only high-level features (stride 4 and coarser) gives every voxel
an identity on the unit sphere, trained with triplets against hard negatives of similar
morphology (IAU-Net, arXiv 2604.09702: of which the abstract is public; the realisation is
ours). Offsets are semi-convolutional (Novotny et al., arXiv 1807.10712): a voxel votes for
its own position plus an offset, so identical objects at different places differ.

What makes tiled and whole results equal: BatchNorm with frozen statistics, nearest-neighbour
upsampling, zero padding only where the image ends, no operation that looks at the tile. How
far one output voxel can see is computed from the modules (`dependency_radius`).
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from iaunet import grid

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
"""The layout, channels last, in which convolutions are fastest."""

Span = tuple[int, int]
"""Begin and end along one axis."""
ENDLESS = 1 << 40

ID_PIXELS = 4
"""In-plane stride of the identity map; along z it is the pooling done by then."""


class Outputs(NamedTuple):
    """What the network says of every voxel: logits, px, log px, unit vectors."""

    fg: torch.Tensor  # (B, 1, ...) logit
    seed: torch.Tensor  # (B, 1, ...) logit
    off: torch.Tensor  # (B, d, ...) px, array axis order
    lsig: torch.Tensor  # (B, d, ...) log px
    id: torch.Tensor  # (B, 16, .../stride) unit length
    emb: torch.Tensor | None = None  # (B, E, ...) free embedding
    bnd: torch.Tensor | None = None  # (B, 1, ...) logit of the outline
    proj: torch.Tensor | None = None  # (B, 32, ...) unit length, for training only
    sem: torch.Tensor | None = None  # (B, C + 1, ...) logits of background and classes


def of_box(maps: Mapping, box: grid.Box, id_stride: Sequence[int]) -> dict:
    """Return a box of every output, by name (arrays or tensors); of the identity map, its cells."""
    cells = grid.cells_of(box, id_stride)
    return {name: a[(..., *(cells if name == "id" else box))] for name, a in maps.items()}


class Residual(nn.Module):
    """Conv-BN-ReLU-Conv-BN plus a 1x1 shortcut, then ReLU."""

    def __init__(self, ndim: int, fan_in: int, width: int, kernel: Sequence[int]) -> None:
        super().__init__()
        pad = tuple(k // 2 for k in kernel)
        self.conv1 = CONV[ndim](fan_in, width, tuple(kernel), padding=pad, bias=False)
        self.norm1 = NORM[ndim](width, momentum=0.05)
        self.conv2 = CONV[ndim](width, width, tuple(kernel), padding=pad, bias=False)
        self.norm2 = NORM[ndim](width, momentum=0.05)
        self.shortcut = CONV[ndim](fan_in, width, 1, bias=False) if fan_in != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, width, ...) for (B, fan_in, ...)."""
        skip = x if self.shortcut is None else self.shortcut(x)
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(h)).add_(skip), inplace=True)


class Widened(nn.Module):
    """Gives numbers of 16 bits 32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same numbers."""
        return x.float() if x.dtype.itemsize < 4 else x


class IAUNet(nn.Module):
    """Identity-aware U-Net.

    Parameters
    ----------
    ndim : int
        2 or 3 image axes.
    widths : sequence of int
        Channels at full resolution and after every pooling.
    pools : sequence of sequence of int
        Pooling factor per axis of every level; 1 or 2. One fewer than `widths`.
    kernels : sequence of sequence of int, optional
        Odd kernel per axis of every level; 3 everywhere when not given. A coarse z axis
        takes 1 along z at the first level.
    max_offset : sequence of float
        Largest offset per axis, px; larger ones are clamped.
    max_sigma : sequence of float
        Largest bandwidth per axis, px; the smallest is 1.
    id_dim, id_width : int
        Length of the identity vector and width of its branch.
    in_channels : int
        Channels of the image.
    emb_dim, proj_dim : int
        Channels of the embedding that the discriminative loss shapes, and of the projection
        that the contrastive loss sees; 0: no such head.
    outline : bool
        Whether there is a head for the outline.
    n_classes : int
        Classes of voxels besides background; 0: no such head.

    Notes
    -----
    Input (B, in_channels, [Z,] Y, X), every length a multiple of `stride`; outputs as in
    `Outputs`.
    """

    def __init__(
        self,
        ndim: int,
        widths: Sequence[int],
        pools: Sequence[Sequence[int]],
        *,
        max_offset: Sequence[float],
        max_sigma: Sequence[float],
        kernels: Sequence[Sequence[int]] | None = None,
        id_dim: int = 16,
        id_width: int = 64,
        in_channels: int = 1,
        emb_dim: int = 0,
        proj_dim: int = 0,
        outline: bool = False,
        n_classes: int = 0,
    ) -> None:
        super().__init__()
        self.ndim = ndim
        self.pools = [tuple(pool) for pool in pools]
        kernels = [(3,) * ndim] * len(widths) if kernels is None else [tuple(k) for k in kernels]
        _check(ndim, widths, self.pools, kernels, max_offset, max_sigma)
        self.options = {
            "ndim": ndim,
            "widths": list(widths),
            "pools": [list(pool) for pool in pools],
            "kernels": [list(kernel) for kernel in kernels],
            "max_offset": list(max_offset),
            "max_sigma": list(max_sigma),
            "id_dim": id_dim,
            "id_width": id_width,
            "in_channels": in_channels,
            "emb_dim": emb_dim,
            "proj_dim": proj_dim,
            "outline": outline,
            "n_classes": n_classes,
        }
        heads = {"emb": emb_dim, "proj": proj_dim, "bnd": int(outline)}
        heads["sem"] = n_classes + 1 if n_classes else 0
        pad = tuple(k // 2 for k in kernels[0])
        self.stem = CONV[ndim](in_channels, widths[0], kernels[0], padding=pad, bias=False)
        self.stem_norm = NORM[ndim](widths[0], momentum=0.05)
        self.down = nn.ModuleList(POOL[ndim](pool) for pool in self.pools)
        self.encoder = nn.ModuleList(
            Residual(ndim, a, b, k)
            for (a, b), k in zip(itertools.pairwise(widths), kernels[1:], strict=True)
        )
        self.decoder = nn.ModuleList(
            Residual(ndim, widths[i + 1] + widths[i], widths[i], kernels[i])
            for i in range(len(self.pools))
        )
        self.head = CONV[ndim](widths[0], 2 + 2 * ndim, 1)
        self.widened = Widened()
        self.heads = nn.ModuleDict(
            {name: CONV[ndim](widths[0], width, 1) for name, width in heads.items() if width}
        )
        self.id_levels = _id_levels(self.pools)
        fan_in = sum(widths[level] for level in self.id_levels)
        self.id_mix = CONV[ndim](fan_in, id_width, 3, padding=1, bias=False)
        self.id_norm = NORM[ndim](id_width, momentum=0.05)
        self.id_out = CONV[ndim](id_width, id_dim, 1)
        self.register_buffer("max_offset", _column(max_offset, ndim), persistent=False)
        self.register_buffer("max_lsig", _column(_logarithms(max_sigma), ndim), persistent=False)
        self.largest: Mapping[str, Sequence[float]] | None = None
        """What was found when the model was calibrated, see `int8`; it is not fitted."""
        if not self.head.weight.is_meta:  # for that torch imports its compiler, for a second
            self._initialise(max_sigma)

    def _initialise(self, max_sigma: Sequence[float]) -> None:
        nn.init.normal_(self.head.weight, std=0.02)
        for head in self.heads.values():
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        nn.init.normal_(self.id_out.weight, std=0.1)
        nn.init.zeros_(self.id_out.bias)
        with torch.no_grad():
            self.head.bias.zero_()
            self.head.bias[0] = -1.0
            self.head.bias[1] = -2.0
            self.head.bias[2 + self.ndim :] = torch.tensor(
                [max(1.0, s / 4) for s in max_sigma]
            ).log()

    @property
    def stride(self) -> tuple[int, ...]:
        """Total pooling per axis: origins and sizes of windows are multiples of it."""
        return _product(self.pools, self.ndim)

    @property
    def id_stride(self) -> tuple[int, ...]:
        """Stride of the identity map per axis."""
        return _product(self.pools[: self.id_levels[0]], self.ndim)

    @property
    def emb_dim(self) -> int:
        """Channels of the free embedding; 0: there is none."""
        return self.options["emb_dim"]

    @property
    def n_classes(self) -> int:
        """Classes of voxels besides background; 0: the network does not tell."""
        return self.options["n_classes"]

    def forward(
        self,
        x: torch.Tensor,
        id_gradient: float = 1.0,
        cuts: Iterable[Sequence[Sequence[int]]] = (),
    ) -> Outputs:
        """Return the outputs.

        Parameters
        ----------
        x : (B, in_channels, ...)
        id_gradient : scales what the identity branch tells the trunk.
        cuts : what is kept of features on the way to a box, see `cuts`; everything when empty.
        """
        cuts = iter(cuts)
        h = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        skips = []
        for down, stage in zip(self.down, self.encoder, strict=True):
            skips.append(cut(h, cuts))
            h = down(h)  # the finer ones are forgotten before the stage needs memory
            h = stage(h)
        features = {len(self.pools): h}
        for level in reversed(range(len(self.pools))):
            h = cut(upsample(h, self.pools[level]), cuts)
            h = cut(self.decoder[level](torch.cat([h, skips.pop()], 1)), cuts)
            features[level] = h
        with torch.autocast(x.device.type, enabled=False):  # px, which bfloat16 would round
            h = self.widened(h)
            raw = self.head(h).float()  # (B, 2 + 2d, ...)
            more = {name: head(h).float() for name, head in self.heads.items()}
        if "proj" in more:
            more["proj"] = F.normalize(more["proj"], dim=1, eps=1e-6)
        return Outputs(
            fg=raw[:, :1],
            seed=raw[:, 1:2],
            off=clamp(raw[:, 2 : 2 + self.ndim], -self.max_offset, self.max_offset),
            lsig=clamp(raw[:, 2 + self.ndim :], torch.zeros_like(self.max_lsig), self.max_lsig),
            id=self._identity(features, id_gradient, cuts),
            **more,
        )

    def _identity(
        self,
        features: dict[int, torch.Tensor],
        id_gradient: float,
        cuts: Iterator[Sequence[Sequence[int]]],
    ) -> torch.Tensor:
        finest = self.id_levels[0]
        parts = []
        for level in self.id_levels:
            h = features[level]
            for pool in reversed(self.pools[finest:level]):
                h = upsample(h, pool)
            parts.append(cut(h, cuts))
        h = torch.cat(parts, 1)
        if id_gradient != 1.0:
            h = id_gradient * h + (1 - id_gradient) * h.detach()
        h = cut(F.relu(self.id_norm(self.id_mix(h))), cuts)
        return F.normalize(self.id_out(h).float(), dim=1, eps=1e-6)

    def inside(self, x: torch.Tensor, box: grid.Box) -> Outputs:
        """Return the outputs of a box in a window, whose ends are multiples of the stride.

        Features that the box does not need are cut off where the decoder would go on with them:
        a halo costs the encoder, and little else.
        """
        return self(x, cuts=self.cuts(x.shape[2:], box).tolist())

    def cuts(self, shape: Sequence[int], box: grid.Box) -> np.ndarray:
        """Return what `forward` keeps of a window's features on the way to a box.

        (number of places, axes, 2) int64: begin and end along every axis, in the order in which
        `forward` comes by. Where the window ends nothing is cut: there zeros are padded, as ever.
        """
        along = [
            _cuts_along(self, axis, (side.start, side.stop), (0, length))
            for axis, (side, length) in enumerate(zip(box, shape, strict=True))
        ]
        return np.array(along, dtype=np.int64).swapaxes(0, 1)

    def freeze_batchnorm(self) -> None:
        """Keep the statistics of every BatchNorm as they are, also while training."""
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def upsample(x: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Repeat every voxel `factors` times per axis (nearest neighbour, bit-exact)."""
    return F.interpolate(x, scale_factor=tuple(float(f) for f in factors), mode="nearest")


def cut(x: torch.Tensor, cuts: Iterator[Sequence[Sequence[int]]]) -> torch.Tensor:
    """Return a copy of what the next cut keeps, so that the rest is forgotten; `x` without cuts."""
    sides = next(cuts, None)
    if sides is None:
        return x
    kept = x[(..., *(slice(begin, end) for begin, end in sides))]
    return kept.clone(memory_format=LAST[x.ndim - 2])


def clamp(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return x within [low, high]; outside, the gradient passes as if it were inside."""
    if not torch.is_grad_enabled():
        return x.clamp(low, high)
    return x + (torch.minimum(torch.maximum(x, low), high) - x).detach()


def dependency_radius(net: IAUNet) -> tuple[int, ...]:
    """Return how many voxels beyond an aligned box its outputs can depend on, per axis.

    The needed interval is walked backward from a box whose ends are multiples of the stride,
    through the modules as they are (kernel sizes and poolings are read from them).
    """
    return tuple(_radius_along(net, axis) for axis in range(net.ndim))


class _Needs(NamedTuple):
    """What a span of outputs needs along one axis, as spans of every level's own voxels."""

    features: list[Span]  # of what a level gives: the decoder's, the encoder's at the coarsest
    inputs: list[Span]  # of what a level's decoder reads, from the level below and beside it
    identity: Span  # of the features that the identity branch mixes


def _needs(net: IAUNet, axis: int, span: Span, window: Span) -> _Needs:
    """Walk backward from a span whose ends are multiples of the stride, as far as a window."""

    def grown(needed: Span, pooled: int, *convs: nn.Module) -> Span:
        more = sum(conv.kernel_size[axis] // 2 for conv in convs)
        return max(needed[0] - more, window[0] // pooled), min(
            needed[1] + more, window[1] // pooled
        )

    total = [_product(net.pools[:level], net.ndim)[axis] for level in range(len(net.pools) + 1)]
    finest = total[net.id_levels[0]]
    identity = grown((span[0] // finest, span[1] // finest), finest, net.id_mix)
    features, inputs = [], []
    for level, pooled in enumerate(total):
        wanted = [span] if level == 0 else [_pooled(inputs[-1], net.pools[level - 1][axis])]
        if level in net.id_levels:
            wanted.append(_pooled(identity, pooled // finest))
        features.append(_union(*wanted))
        if level < len(net.pools):
            stage = net.decoder[level]
            inputs.append(grown(features[-1], pooled, stage.conv1, stage.conv2))
    return _Needs(features, inputs, identity)


def _cuts_along(net: IAUNet, axis: int, span: Span, window: Span) -> list[Span]:
    """Return along one axis what `IAUNet.cuts` does."""
    needs = _needs(net, axis, span, window)
    begins = [needed[0] for needed in needs.features[:-1]] + [0]  # the coarsest is never cut
    cuts = []

    def keep(wanted: Span, begin: int) -> None:
        cuts.append((wanted[0] - begin, wanted[1] - begin))

    for needed in needs.inputs:
        keep(needed, 0)
    for level in reversed(range(len(net.pools))):
        keep(needs.inputs[level], begins[level + 1] * net.pools[level][axis])
        keep(needs.features[level], needs.inputs[level][0])
    finest = net.id_levels[0]
    for level in net.id_levels:
        scale = _product(net.pools[finest:level], net.ndim)[axis]
        keep(needs.identity, begins[level] * scale)
    stride = net.id_stride[axis]
    keep((span[0] // stride, span[1] // stride), needs.identity[0])
    return cuts


def _radius_along(net: IAUNet, axis: int) -> int:
    length = 4 * net.stride[axis]  # any multiple of the stride gives the same answer
    needs = _needs(net, axis, (0, length), (-ENDLESS, ENDLESS))
    needed = needs.features[-1]
    for level in reversed(range(len(net.pools))):
        stage = net.encoder[level]
        pool = net.pools[level][axis]
        more = stage.conv1.kernel_size[axis] // 2 + stage.conv2.kernel_size[axis] // 2
        needed = (needed[0] - more) * pool, (needed[1] + more) * pool
        needed = _union(needed, needs.inputs[level])
    more = net.stem.kernel_size[axis] // 2
    return max(more - needed[0], needed[1] + more - length)


def _pooled(span: Span, pool: int) -> Span:
    """Return the span of coarser voxels that covers a span."""
    return span[0] // pool, -(-span[1] // pool)


def _union(*spans: Span) -> Span:
    return min(begin for begin, _ in spans), max(end for _, end in spans)


def _id_levels(pools: Sequence[Sequence[int]]) -> list[int]:
    """Return the levels that feed the identity branch: stride 4 or more, at most three."""
    levels = [
        level
        for level in range(1, len(pools) + 1)
        if _product(pools[:level], len(pools[0]))[-1] >= ID_PIXELS
    ]
    if not levels:
        raise ValueError(f"the identity branch needs stride {ID_PIXELS} in x, got {pools=}")
    return levels[:3] if len(levels) <= 3 else [levels[0], levels[1], levels[-1]]


def _product(pools: Sequence[Sequence[int]], ndim: int) -> tuple[int, ...]:
    total = [1] * ndim
    for pool in pools:
        total = [a * b for a, b in zip(total, pool, strict=True)]
    return tuple(total)


def _column(values: Sequence[float], ndim: int) -> torch.Tensor:
    return torch.tensor([float(v) for v in values]).reshape(1, ndim, *[1] * ndim)


def _logarithms(values: Sequence[float]) -> list[float]:
    """Return natural logarithms, 32-bit, also while the device is "meta"."""
    return torch.tensor([float(v) for v in values], device="cpu").log().tolist()


def _check(
    ndim: int,
    widths: Sequence[int],
    pools: Sequence[tuple[int, ...]],
    kernels: Sequence[tuple[int, ...]],
    max_offset: Sequence[float],
    max_sigma: Sequence[float],
) -> None:
    if ndim not in CONV:
        raise ValueError(f"ndim is 2 or 3, got {ndim}")
    if not len(widths) == len(kernels) == len(pools) + 1:
        raise ValueError(f"{len(pools)} poolings need {len(pools) + 1} widths and kernels")
    for factors in pools:
        if len(factors) != ndim or any(f not in (1, 2) for f in factors):
            raise ValueError(f"a pooling has {ndim} factors of 1 or 2, got {factors}")
    for kernel in kernels:
        if len(kernel) != ndim or any(k not in (1, 3, 5) for k in kernel):
            raise ValueError(f"a kernel has {ndim} sizes of 1, 3 or 5, got {kernel}")
    for name, values in (("max_offset", max_offset), ("max_sigma", max_sigma)):
        if len(values) != ndim or not all(1 <= v <= 2000 for v in values):
            raise ValueError(f"{name} has {ndim} values of 1 to 2000 px, got {list(values)}")
