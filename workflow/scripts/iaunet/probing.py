"""How far a foreign network sees, and how much its tiled outputs differ from untiled ones.

`radius`: NaN passes every local operation, also where a weight is 0 or a ReLU is closed. With
NaN on all voxels below a plane, the outputs that stay finite are those that cannot depend on
them. So the radius is that of the architecture, not of some probe, and an operation that looks at
the whole tile shows as one without end.

`differences`: outputs of windows with halo, minus those of the whole probe image.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from iaunet import fixedpoint
from iaunet.errors import InputError
from iaunet.foreign import Foreign

LARGEST_RADIUS_PX = 512
PROBE_PX = {2: 64, 3: 32}
TOLERANCE = 0.1
"""Largest difference, in steps of the stored numbers, that is rounding: float32 kernels may add
in another order for another window, about 1e-7 of the value; a step of ``seed`` is 3e-5."""


def probe_shape(net: Foreign) -> list[int]:
    """Return the smallest odd multiples of the stride that hold some structure."""
    return [s * (-(-PROBE_PX[net.ndim] // s) | 1) for s in net.stride]


def probe(net: Foreign, shape: Sequence[int]) -> torch.Tensor:
    """Return noise in [0, 1) as a window, the same every time."""
    values = np.random.default_rng(0).random((1, 1, *shape), np.float32)
    return torch.from_numpy(values).to(net.anchor.device)


def id_stride(net: Foreign) -> tuple[int, ...]:
    """Return px per cell of the identity map; the stride when there is none.

    Raises
    ------
    InputError
        It does not divide the stride; or a head is not as the contract says.
    """
    x = probe(net, probe_shape(net))
    with torch.inference_mode():
        found = net.heads(x)
    _check_values(net, found)
    if "id" not in found:
        return net.stride
    cells = found["id"].shape[2:]
    steps = tuple(n // c for n, c in zip(x.shape[2:], cells, strict=True))
    fits = all(s * c == n for s, c, n in zip(steps, cells, x.shape[2:], strict=True))
    if not fits or any(a % b for a, b in zip(net.stride, steps, strict=True)):
        raise InputError(
            f"{net.name}: head id has {tuple(cells)} cells for a window of {tuple(x.shape[2:])}; "
            f"needs a stride that divides {net.stride}"
        )
    return steps


def _check_values(net: Foreign, found: Mapping[str, torch.Tensor]) -> None:
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise InputError(f"{net.name}: head {name} is NaN or infinite on a probe image")
    scores = torch.cat([found["fg"], found["seed"]])
    if net.contract.scores == "probabilities" and not bool(((scores >= 0) & (scores <= 1)).all()):
        raise InputError(
            f"{net.name}: fg and seed are {float(scores.min()):.3g} to {float(scores.max()):.3g}, "
            "no probabilities; say --scores logits"
        )
    if "id" in found:
        length = found["id"].norm(dim=1)
        if not bool(((length - 1).abs() < 1e-3).all()):
            raise InputError(
                f"{net.name}: vectors of head id have lengths {float(length.min()):.3g} to "
                f"{float(length.max()):.3g}, needs 1; normalise them in the network, or leave "
                "the head out"
            )


def radius(net: Foreign) -> tuple[int, ...] | None:
    """Return how far beyond an aligned box its outputs can depend, px, multiples of the stride.

    None when there is no end within `LARGEST_RADIUS_PX`.
    """
    found = []
    for axis in range(net.ndim):
        sides = [_radius_along(net, axis, before) for before in (True, False)]
        if None in sides:
            return None
        found.append(max(sides))
    return tuple(found)


def _radius_along(net: Foreign, axis: int, before: bool) -> int | None:
    step = net.stride[axis]
    strides = 4
    while not _is_clean(net, axis, before, strides, strides - 1):
        strides *= 2
        if strides * step > 2 * LARGEST_RADIUS_PX:
            return None
    low, high = 0, strides - 1  # `high` is clean
    while low < high:
        middle = (low + high) // 2
        if _is_clean(net, axis, before, strides, middle):
            high = middle
        else:
            low = middle + 1
    return low * step


def _is_clean(net: Foreign, axis: int, before: bool, reach: int, halo: int) -> bool:
    """Tell whether outputs of a box are finite when all beyond its halo is NaN, in strides."""
    step = net.stride[axis]
    shape = [s * (-(-16 // s)) for s in net.stride]
    shape[axis] = (reach + 2) * step
    x = probe(net, shape)
    end = (reach - halo) * step
    x.narrow(2 + axis, 0 if before else shape[axis] - end, end).fill_(math.nan)
    with torch.inference_mode():
        found = net.heads(x)
    for value in found.values():
        length = value.shape[2 + axis]
        first = length * reach // (reach + 2)
        kept = value.narrow(2 + axis, first if before else 0, length - first)
        if bool(kept.isnan().any()):
            return False
    return True


def strip_shapes(net: Foreign, halo_px: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shapes of the probe images of `differences`: one along every axis."""
    short = [s * (-(-PROBE_PX[net.ndim] // s)) for s in net.stride]
    return [
        tuple(
            2 * halo_px[a] + 8 * net.stride[a] if a == axis else short[a] for a in range(net.ndim)
        )
        for axis in range(net.ndim)
    ]


def differences(
    net: Foreign, strips: Sequence[np.ndarray], halo_px: Sequence[int]
) -> dict[str, float]:
    """Return the largest difference of tiled and untiled outputs, by head.

    Parameters
    ----------
    strips : float32 arrays of `strip_shapes`, scaled intensities.
    halo_px : context of a window, multiples of the stride.

    Returns
    -------
    dict
        fg and seed: probability, off: px, lsig: log px, id: of a unit vector.
    """
    torch.set_num_threads(1)  # as `predict` does
    largest: dict[str, float] = {}
    for axis, strip in enumerate(strips):
        x = torch.from_numpy(strip)[None, None]
        whole = _values(net, x)
        for start, box in _windows(strip.shape[axis], net.stride[axis], halo_px[axis]):
            part = _values(net, x.narrow(2 + axis, start[0], start[1] - start[0]).contiguous())
            for name, value in part.items():
                cell = x.shape[2 + axis] // whole[name].shape[2 + axis]
                near = value.narrow(
                    2 + axis, (box[0] - start[0]) // cell, (box[1] - box[0]) // cell
                )
                far = whole[name].narrow(2 + axis, box[0] // cell, (box[1] - box[0]) // cell)
                largest[name] = max(largest.get(name, 0.0), float((near - far).abs().max()))
    return largest


def _windows(
    length: int, step: int, halo: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield windows and the boxes in them: origins at all phases of the stride, and both ends."""
    size = 3 * step
    for phase in range(5):
        box = (halo + phase * step, halo + phase * step + size)
        yield (box[0] - halo, box[1] + halo), box
    yield (0, size + halo), (0, size)
    yield (length - size - halo, length), (length - size, length)


def _values(net: Foreign, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        outputs = net(x.to(net.anchor.device))
    values = {"fg": outputs.fg.sigmoid(), "seed": outputs.seed.sigmoid()}
    return values | {"off": outputs.off, "lsig": outputs.lsig, "id": outputs.id}


def in_steps(found: Mapping[str, float]) -> float:
    """Return the largest difference in steps of the numbers that are stored."""
    return max(value * fixedpoint.SCALE[name] for name, value in found.items())
