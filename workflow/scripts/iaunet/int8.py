"""Our network in whole numbers of 8 bits, on processors that multiply such quickly.

Between two convolutions a value is 0 to 255 steps of its channel. The steps come from the largest
value of every channel, which was found when the model was calibrated (`largest_values`). The first
convolution and the last layers compute in floating point, so that image and offsets keep their
digits. Sums of products are exact.

A step per channel instead of one per layer costs nothing: weights take in the steps of what they
are given and of what they give before they are rounded themselves (Nagel et al. 2019, "Data-free
quantization through weight equalization and bias correction", section 4.1).
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from iaunet import grid
from iaunet.net import LAST, IAUNet

LEVELS = 255
LARGEST_WEIGHT = 127
ROOM = 1.25
"""For larger values than those of the images that a model was calibrated with."""
LEAST_STEP = 1e-8
"""Of a channel that was 0 all over, and least weight."""
STRIP_PX = {2: (32, 2048), 3: (4, 32, 512)}
"""What the first convolution computes at once: its numbers stay in the processor's cache."""
QUICK = ("avx512_vnni", "avx_vnni", "amx_int8")
"""What a processor has that multiplies bytes without overflow, any of them."""
OPERATIONS = ("qconv_prepack", "qconv2d_pointwise", "qconv3d_pointwise")
OPERATIONS += ("qlinear_prepack", "qlinear_pointwise")
"""Of PyTorch for x86; they are no promise of it, and where one is missing there is no int8."""


def is_quick(device: torch.device) -> bool:
    """Return whether a device multiplies whole numbers of 8 bits faster than floating point."""
    known = torch.cpu.get_capabilities()
    is_there = all(hasattr(torch.ops.onednn, name) for name in OPERATIONS)
    return device.type == "cpu" and is_there and any(known.get(name) for name in QUICK)


class _Rounded(NamedTuple):
    """A convolution: int8 weights, what they are multiples of per output, zeros, biases."""

    weight: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bias: torch.Tensor | None


def _rounded(
    weight: torch.Tensor, bias: torch.Tensor | None, taken: torch.Tensor, given: torch.Tensor
) -> _Rounded:
    """Round weights (out, in, ...) and biases (out,).

    `taken` (in,) and `given` (out,) are the steps of the channels, 1 where they are no bytes.
    """
    ones = [1] * (weight.ndim - 2)
    weight = weight.detach() * taken.view(1, -1, *ones)
    scale = weight.flatten(1).abs().amax(1).clamp(min=LEAST_STEP) / LARGEST_WEIGHT
    return _Rounded(
        weight=(weight / scale.view(-1, 1, *ones)).round().to(torch.int8),
        scale=scale / given,
        zero=torch.zeros(len(scale), dtype=torch.int32),
        bias=None if bias is None else bias.detach() / given,
    )


class Conv(nn.Module):
    """A convolution of bytes, and ReLU where it gives bytes; see `_rounded`."""

    def __init__(
        self, conv: nn.Module, taken: torch.Tensor, given: torch.Tensor, kind: torch.dtype
    ) -> None:
        super().__init__()
        self.kernel_size, self.kind = conv.kernel_size, kind
        own = _rounded(conv.weight, conv.bias, taken, given)
        ones = [1] * len(conv.padding)
        self.sizes = (ones, list(conv.padding), ones, 1)  # stride, padding, dilation, groups
        packed = torch.ops.onednn.qconv_prepack(own.weight, own.scale, 1.0, 0, *self.sizes, None)
        self.weights = (packed, own.scale, own.zero, own.bias)
        name = f"qconv{len(ones)}d_pointwise"
        self.op = getattr(torch.ops.onednn, name).default

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out, ...) for bytes (B, in, ...)."""
        return self.op(x, 1.0, 0, *self.weights, *self.sizes, 1.0, 0, self.kind, "none", [], "")


class Shortcut(nn.Module):
    """A convolution of width 1, to which another's result is added; then ReLU."""

    def __init__(
        self, conv: nn.Module | None, taken: torch.Tensor, given: torch.Tensor, kind: torch.dtype
    ) -> None:
        super().__init__()
        self.kind = kind
        weight = torch.eye(len(taken)) if conv is None else conv.weight.flatten(1)
        own = _rounded(weight, None, taken, given)
        packed = torch.ops.onednn.qlinear_prepack(own.weight, None)
        self.weights = (packed, own.scale, own.zero)

    def forward(self, x: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        """Return (B, out, ...) for bytes (B, in, ...) and (B, out, ...)."""
        found = torch.ops.onednn.qlinear_pointwise.binary(
            x.movedim(1, -1), 1.0, 0, *self.weights, more.movedim(1, -1), None, 1.0, 0, self.kind,
            1.0, 0, "add", 1.0, "relu", [], "",
        )  # fmt: skip
        return found.movedim(-1, 1)


class Stage(nn.Module):
    """`net.Residual`, folded, of bytes."""

    def __init__(
        self, stage: nn.Module, taken: torch.Tensor, between: torch.Tensor, given: torch.Tensor,
        kind: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = Conv(stage.conv1, taken, between, torch.uint8)
        self.conv2 = Conv(stage.conv2, between, given, torch.bfloat16)
        self.shortcut = Shortcut(stage.shortcut, taken, given, kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, width, ...) for bytes (B, fan_in, ...)."""
        return self.shortcut(x, self.conv2(self.conv1(x)))


class First(nn.Module):
    """A convolution in floating point that gives bytes, after ReLU."""

    def __init__(self, conv: nn.Module, given: torch.Tensor) -> None:
        super().__init__()
        self.kernel_size = conv.kernel_size
        ones = [1] * len(conv.padding)
        self.weight = conv.weight.detach() / given.view(-1, 1, *ones)
        self.bias = conv.bias.detach() / given + 0.5  # what follows cuts digits off
        self.sizes = (list(conv.padding), ones, ones, 1)  # padding, stride, dilation, groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return bytes (B, out, ...) for (B, in, ...), strip by strip."""
        shape = x.shape[2:]
        made = torch.empty(
            (len(x), len(self.weight), *shape),
            dtype=torch.uint8,
            memory_format=LAST[len(shape)],
        )
        for strip in grid.tiles(shape, STRIP_PX[len(shape)]):
            seen = grid.grow(strip.core, self.sizes[0], shape)
            h = x[(..., *seen)].contiguous(memory_format=LAST[len(shape)])
            h = torch.mkldnn_convolution(h, self.weight, self.bias, *self.sizes)
            h = h[(..., *grid.shift(strip.core, grid.origin(seen)))]
            # By way of 16 bits, for which PyTorch has vectors.
            made[(..., *strip.core)] = h.clamp_(0, LEVELS).to(torch.int16)
        return made


def converted(net: IAUNet, largest: Mapping[str, Sequence[float]]) -> IAUNet:
    """Convert a network that is folded, in place, and return it.

    `largest` is as `largest_values` returns it.
    """
    steps = {
        name: (torch.tensor(values) * ROOM / LEVELS).clamp(min=LEAST_STEP)
        for name, values in largest.items()
    }
    levels = len(net.pools)
    net.stem = First(net.stem, steps["stem"])
    features = [steps["stem"]]
    for k, stage in enumerate(net.encoder):
        between, given = steps[f"encoder.{k}.conv1"], steps[f"encoder.{k}"]
        net.encoder[k] = Stage(stage, features[-1], between, given, torch.uint8)
        features.append(given)
    below = features[-1]
    read = {levels: below}
    for k in reversed(range(levels)):
        # The last layers read floating point.
        kind = torch.uint8 if k else torch.bfloat16
        between, given = steps[f"decoder.{k}.conv1"], steps[f"decoder.{k}"]
        given = given if k else torch.ones_like(given)
        taken = torch.cat([below, features[k]])
        net.decoder[k] = Stage(net.decoder[k], taken, between, given, kind)
        below = read[k] = given
    taken = torch.cat([read[k] for k in net.id_levels])
    width = torch.ones(len(net.id_mix.weight))
    net.id_mix = Conv(net.id_mix, taken, width, torch.float32)
    return net


def channels(net: IAUNet) -> dict[str, int]:
    """Return the channels of every place at which a network's values become bytes."""
    found = {"stem": len(net.stem.weight)}
    for side in ("encoder", "decoder"):
        for k, stage in enumerate(getattr(net, side)):
            found |= {f"{side}.{k}.conv1": len(stage.conv1.weight)}
            found |= {f"{side}.{k}": len(stage.conv2.weight)}
    return found


def largest_values(net: IAUNet, images: Iterable[torch.Tensor]) -> dict[str, list[float]]:
    """Return the largest value of every channel at every place of `channels`, over images.

    `net` is folded; every image is (1, 1, ...), scaled, of sides that are multiples of the stride.
    """
    found = {name: torch.zeros(n) for name, n in channels(net).items()}
    with contextlib.ExitStack() as hooks, torch.inference_mode():
        for name in found:
            hooks.enter_context(_watched(net.get_submodule(name), found, name))
        for image in images:
            net(image)
    # 4 digits, to tell as much as is known.
    return {name: [float(f"{v:.4g}") for v in values.tolist()] for name, values in found.items()}


@contextlib.contextmanager
def _watched(module: nn.Module, found: dict[str, torch.Tensor], name: str) -> Iterator[None]:
    """Have a module note the largest value of each of its channels."""

    def note(module: nn.Module, given: tuple, out: torch.Tensor) -> None:
        top = out.amax(dim=(0, *range(2, out.ndim))).float()
        found[name] = torch.maximum(found[name], top)

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()
