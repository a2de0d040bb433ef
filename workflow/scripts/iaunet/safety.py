"""Is a foreign network exact in tiles: what breaks it, how far it sees, how much it differs.

Three answers that check each other:

`findings`: the operations that the network executes, with their real arguments, against what is
known of them; the graph tells in which layer they are. Rules of METHODS 0.5: no normalisation
by the tile's own statistics, no bilinear upsampling, strides that divide the declared one.

`radius`: NaN passes every local operation, also where a weight is 0 or a ReLU is closed. With
NaN on all voxels below a plane, the outputs that stay finite are those that cannot depend on
them. So the radius is that of the architecture, not of some probe, and an operation that looks at
the whole tile shows as one without end.

`differences`: outputs of windows with halo, minus those of the whole probe image.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iaunet import fixedpoint
from iaunet.errors import InputError
from iaunet.foreign import Foreign

LARGEST_RADIUS_PX = 1024
PROBE_PX = {2: 64, 3: 32}
TOLERANCE = 0.1
"""Largest difference, in steps of the stored numbers, that is rounding: float32 kernels may add
in another order for another window, about 1e-7 of the value; a step of ``seed`` is 3e-5."""

BREAKS = {
    "group_norm": "GroupNorm takes its statistics from the tile",
    "native_group_norm": "GroupNorm takes its statistics from the tile",
    "upsample_linear1d": "linear upsampling rounds by position",
    "upsample_bilinear2d": "bilinear upsampling rounds by position and blends across the border",
    "upsample_trilinear3d": "trilinear upsampling rounds by position and blends across the border",
    "upsample_bicubic2d": "bicubic upsampling rounds by position and blends across the border",
}
WHEN = {
    "batch_norm": ("training", "BatchNorm in training mode takes its statistics from the tile"),
    "native_batch_norm": (
        "training",
        "BatchNorm in training mode takes its statistics from the tile",
    ),
    "instance_norm": ("use_input_stats", "InstanceNorm takes its statistics from the tile"),
    "dropout": ("train", "dropout in training mode is random"),
    "feature_dropout": ("train", "dropout in training mode is random"),
    "alpha_dropout": ("train", "dropout in training mode is random"),
    "feature_alpha_dropout": ("train", "dropout in training mode is random"),
    "rrelu": ("training", "RReLU in training mode is random"),
}
"""What breaks exactness when an argument of it is true."""

WHOLE = {
    name: phrase
    for phrase, names in {
        "LayerNorm takes its statistics from the tile": "layer_norm native_layer_norm",
        "pooling over the whole tile": "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
        " _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
        "statistics over the tile": "mean sum std var std_mean var_mean amax amin max min median"
        " logsumexp prod norm linalg_vector_norm cumsum",
        "softmax over space": "softmax _softmax log_softmax _log_softmax",
        "attention over space": "scaled_dot_product_attention _native_multi_head_attention matmul"
        " bmm baddbmm mm addmm einsum linear",
        "the order of voxels within the tile": "flip roll rot90 reshape view flatten transpose"
        " permute",
    }.items()
    for name in names.split()
}
"""What may look at the whole tile, or not, as the axes go: named when the radius has no end.
All of them pass NaN on."""

STRIDED = {f"conv{n}d" for n in (1, 2, 3)} | {"convolution", "_convolution"}
STRIDED |= {f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)}
STRIDED |= {"max_pool2d_with_indices", "max_pool3d_with_indices"}
NEAREST = {f"upsample_nearest{n}d" for n in (1, 2, 3)}
NEAREST |= {f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)}
STRIDES = ("misaligned stride", "stride ")
"""How findings begin with which no window can be right, so that nothing can be measured."""

POINTWISE = (
    "relu leaky_relu prelu elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid "
    "hardswish sigmoid log_sigmoid tanh exp log log1p expm1 sqrt rsqrt square pow abs neg glu "
    "reciprocal add sub rsub mul div addcmul addcdiv maximum minimum clamp clamp_min clamp_max "
    "cat concat stack split split_with_sizes chunk unbind narrow slice select unsqueeze squeeze "
    "expand expand_as repeat contiguous clone detach alias to type_as _to_copy float view_as "
    "reshape_as pad constant_pad_nd pixel_shuffle pixel_unshuffle size stride dim numel copy"
)
LOCAL = {
    *STRIDED,
    *NEAREST,
    *WHEN,
    *POINTWISE.split(),
    *(f"conv_transpose{n}d" for n in (1, 2, 3)),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
}
"""What looks at neighbours only, at the same ones everywhere, and passes NaN on."""


@dataclass(frozen=True)
class Step:
    """One operation that the network executed."""

    kind: str
    arguments: Mapping[str, object]  # tensors are their shapes
    shape: tuple[int, ...]  # of its (first) result
    layer: str


def findings(net: Foreign) -> list[str]:
    """Return what breaks exactness for certain, each with its operation and layer.

    The window is an odd multiple of the declared stride, so that a larger true one shows.
    """
    done, error = executed(net, probe(net, probe_shape(net)))
    found = [f"{text} ({step.layer})" for step in done for text in _broken(step)]
    if error is not None and not found:
        net.run(probe(net, probe_shape(net)))  # once more: recording hides the reason
    return list(dict.fromkeys(found))


def suspects(net: Foreign) -> list[str]:
    """Return what may look at the whole tile, each with its operation and layer."""
    done, _ = executed(net, probe(net, probe_shape(net)))
    named = [(WHOLE[step.kind], step.layer) for step in done if step.kind in WHOLE]
    moves = "the order of voxels within the tile"  # of most of these nothing comes
    telling = [pair for pair in named if pair[0] != moves] or named
    return list(dict.fromkeys(f"{text} ({layer})" for text, layer in telling))


def executed(net: Foreign, x: torch.Tensor) -> tuple[list[Step], InputError | None]:
    """Return the operations of one evaluation in order, and the error that ended it."""
    error = None
    with torch.inference_mode(), _Record() as record:
        try:
            net.run(x)
        except InputError as caught:
            error = caught
    layers = _layers(net.scripted, [step[0] for step in record.steps])
    return [
        Step(kind.removesuffix("_"), arguments, shape, layer)
        for (kind, arguments, shape), layer in zip(record.steps, layers, strict=True)
    ], error


class _Record(TorchDispatchMode):
    """Notes every operation that is executed, also the one that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, dict, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        schema, result = func._schema, None
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            known = {argument.name: argument.default_value for argument in schema.arguments}
            known |= {a.name: v for a, v in zip(schema.arguments, args, strict=False)}
            known |= kwargs or {}
            first = result[0] if isinstance(result, (tuple, list)) and result else result
            shape = tuple(first.shape) if isinstance(first, torch.Tensor) else ()
            if not _is_size(known.values(), first):
                plain = {key: _plain(value) for key, value in known.items()}
                self.steps.append((schema.name.removeprefix("aten::"), plain, shape))
        return result


def _is_size(values: Iterable[object], result: object) -> bool:
    """Tell whether an operation reckons with sizes: traced networks do it with tensors."""
    tensors = [v for v in (*values, result) if isinstance(v, torch.Tensor)]
    return bool(tensors) and all(v.ndim == 0 and not v.is_floating_point() for v in tensors)


def _plain(value: object) -> object:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


def _layers(scripted: torch.jit.ScriptModule, kinds: Sequence[str]) -> list[str]:
    """Return where in the graph each executed operation is: operation, layer, node.

    The n-th of a kind is the n-th node of that kind. Where the graph has more of them than were
    executed (branches that were not taken), all their layers are named.
    """
    graph = scripted.inlined_graph  # its nodes live as long as it does
    nodes: dict[str, list[torch._C.Node]] = {}
    for node in _nodes(graph):
        nodes.setdefault(node.kind().removeprefix("aten::"), []).append(node)
    counts, seen = Counter(kinds), Counter()
    found = []
    for kind in kinds:
        known = nodes.get(kind, [])
        here = [known[seen[kind]]] if len(known) == counts[kind] else known
        seen[kind] += 1
        found.append(_place(kind, here))
    return found


def _place(kind: str, nodes: Sequence["torch._C.Node"]) -> str:
    layers = list(dict.fromkeys(_layer(node) for node in nodes))
    names = [f"%{node.output().debugName()}" for node in nodes if node.outputsSize() == 1]
    text = f"{kind} in {' or '.join(layers[:3]) or 'the network'}"
    return f"{text}, node {' or '.join(names[:3])}" if names else text


def _nodes(block: "torch._C.Graph | torch._C.Block") -> Iterator["torch._C.Node"]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _layer(node: "torch._C.Node") -> str:
    """Return the layer of a node: by the attributes it reads, else by the call it came from."""
    path: list[str] = []
    for value in node.inputs():
        source = value.node()
        names = []
        while source.kind() == "prim::GetAttr":
            names.append(source.s("name"))
            source = source.input().node()
        if len(names) > 1:
            path = names[:0:-1]
            break
    if not path:
        for part in node.getModuleHierarchy().split("."):
            name = part.partition("(")[0]
            if name in ("", "SELF", "UNKNOWN_INSTANCE"):
                break
            path.append(name)
    return f"layer {'.'.join(path)}" if path else "forward"


def _broken(step: Step) -> list[str]:
    """Return what is wrong with one operation, as sentences without a place."""
    kind = step.kind
    if kind in BREAKS:
        return [BREAKS[kind]]
    if kind in WHEN:
        argument, phrase = WHEN[kind]
        return [phrase] if step.arguments.get(argument) else []
    if kind in STRIDED:
        return _misaligned(step)
    if kind in NEAREST:
        return _uneven(step)
    if kind not in LOCAL and kind not in WHOLE:
        return ["an operation that is not known to be local"]
    return []


def _misaligned(step: Step) -> list[str]:
    arguments = step.arguments
    if arguments.get("transposed"):
        return []
    given = next(value for value in arguments.values() if isinstance(value, tuple))
    steps = arguments["stride"] or arguments["kernel_size"]
    lengths = given[2:]
    steps = list(steps) * (len(lengths) if len(steps) == 1 else 1)
    found = []
    for length, pace in zip(lengths, steps, strict=False):
        if pace > 1 and not math.log2(pace).is_integer():
            found.append(f"stride {pace} is no power of two")
        elif length % pace:
            found.append(
                f"misaligned stride: it steps by {pace} over {length} voxels, so the declared "
                "stride is too small"
            )
    return found[:1]


def _uneven(step: Step) -> list[str]:
    given = next(value for value in step.arguments.values() if isinstance(value, tuple))
    for before, after in zip(given[2:], step.shape[2:], strict=False):
        if after % before or not math.log2(after // before).is_integer():
            return [f"upsampling from {before} to {after} voxels is by no power of two"]
    return []


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
