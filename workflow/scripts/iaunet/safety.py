"""What in a foreign network breaks exactness in tiles, by operation and layer.

The operations that the network executes are recorded with their real arguments; the graph tells
in which layer they are. Rules of METHODS 0.5: no normalisation by the tile's own statistics, no
bilinear upsampling, strides that divide the declared one. What may look at the whole tile or
not, as the axes go, is decided by `probing.radius`; that rests on NaN, which all operations pass
that are known here. An operation that is not known is a finding.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iaunet import probing
from iaunet.errors import InputError
from iaunet.foreign import Foreign

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

CONSTANT = {"zeros", "ones", "full", "zeros_like", "ones_like", "full_like"}
"""Harmless per channel; over space they would mark where the tile ends."""


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
    done, error = executed(net, probing.probe(net, probing.probe_shape(net)))
    found = [f"{text} ({step.layer})" for step in done for text in _broken(step)]
    if error is not None and not found:
        net.run(
            probing.probe(net, probing.probe_shape(net))
        )  # once more: recording hides the reason
    return list(dict.fromkeys(found))


def suspects(net: Foreign) -> list[str]:
    """Return what may look at the whole tile, each with its operation and layer."""
    done, _ = executed(net, probing.probe(net, probing.probe_shape(net)))
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
    layers = _layers(net.graph, [step[0] for step in record.steps])
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


def _layers(graph: "torch._C.Graph", kinds: Sequence[str]) -> list[str]:
    """Return where in the graph each executed operation is: operation, layer, node.

    The n-th of a kind is the n-th node of that kind. Where the graph has more of them than were
    executed (branches that were not taken), all their layers are named.
    """
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
    per_channel = [n for k, n in enumerate(step.shape) if k != 1 or len(step.shape) < 4]
    if kind in CONSTANT and set(per_channel) <= {1}:
        return []
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
