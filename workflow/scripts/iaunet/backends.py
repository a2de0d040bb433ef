"""Ways to compute a network: PyTorch in float32, bfloat16 or int8, ONNX Runtime, OpenVINO.

All answer as the network does, and are given blocks of the same size whatever the tiles are: so
with each of them the tiled result is the untiled one. Between them results differ in the last
digits. ONNX Runtime and OpenVINO are optional; both read the ONNX that `to_onnx` writes.
"""

import copy
import io
import threading
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iaunet import extras, grid, int8
from iaunet.errors import InputError, OptionError
from iaunet.net import LAST, IAUNet, Outputs, of_box

BACKENDS = ("auto", "torch", "openvino", "onnxruntime")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")
STORED = ("fg", "seed", "off", "lsig", "id", "emb", "sem")
"""Heads that are stored; the others are for training."""
OPSET = 17
STRIP = 1 << 15
"""Voxels for which a last layer is computed at once."""
Run = Callable[..., Sequence[np.ndarray]]
"""A window, and for our network what is cut (`IAUNet.cuts`) -> the stored heads."""
NORMED = {"stem": "stem_norm", "conv1": "norm1", "conv2": "norm2", "id_mix": "id_norm"}
"""Convolutions of our network and what follows them."""


class _Standing(nn.Module):
    """Stands where a network stands."""

    def __init__(self, net: nn.Module, backend: str, precision: str) -> None:
        super().__init__()
        self.ndim, self.stride, self.id_stride = net.ndim, net.stride, net.id_stride
        self.emb_dim, self.n_classes, self.cuts = net.emb_dim, net.n_classes, net.cuts
        self.backend, self.precision = backend, precision


class Torch(_Standing):
    """A network in PyTorch, on its device; its last layers stay float32 in any precision.

    Of ours the BatchNorms are folded into the convolutions, whose weights lie as the voxels do.
    """

    def __init__(self, net: nn.Module, precision: str) -> None:
        super().__init__(net, "torch", precision)
        self.net = folded(net) if isinstance(net, IAUNet) else net
        if precision == "int8":
            self.net = int8.converted(self.net, net.largest)

    def forward(self, x: torch.Tensor) -> Outputs:
        """Return what the network does."""
        with self._precisely(x):
            return self.net(x)

    def inside(self, x: torch.Tensor, box: grid.Box) -> Outputs:
        """Return what the network says of a box in a window."""
        with self._precisely(x):
            return self.net.inside(x, box)

    def _precisely(self, x: torch.Tensor) -> torch.autocast:
        half = self.precision == "bfloat16"
        return torch.autocast(x.device.type, torch.bfloat16, enabled=half)


class _LargestOfTwo(nn.Module):
    """Max pooling by 1 or 2 per axis; that of PyTorch in 3D gives up channels last, and back."""

    def __init__(self, pool: Sequence[int]) -> None:
        super().__init__()
        self.axes = [2 + axis for axis, factor in enumerate(pool) if factor == 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in self.axes:
            every = (slice(None),) * axis
            x = torch.maximum(x[(*every, slice(0, None, 2))], x[(*every, slice(1, None, 2))])
        return x


class _Pointwise(nn.Module):
    """A convolution of width 1 as products of matrices, whose channels lie one after the other.

    It computes in 32 bits whatever it is given, strip by strip: all of it would be large.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.flatten(1))
        self.bias = conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.expand(len(x), *self.weight.shape)
        flat = x.flatten(2)
        found = flat.new_empty((len(x), len(self.weight), flat.shape[2]), dtype=weight.dtype)
        for begin in range(0, flat.shape[2], STRIP):
            part = flat[:, :, begin : begin + STRIP].to(weight.dtype)
            found[:, :, begin : begin + STRIP] = torch.baddbmm(self.bias[:, None], weight, part)
        return found.view(len(x), -1, *x.shape[2:])


def folded(net: IAUNet) -> IAUNet:
    """Return a copy that computes faster and cannot learn.

    BatchNorms are parts of the convolutions, and weights channels last; else PyTorch lays them out
    anew for every window.
    """
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        for name, norm in NORMED.items():
            if hasattr(module, norm):
                conv = fuse_conv_bn_eval(getattr(module, name), getattr(module, norm))
                setattr(module, name, conv)
                setattr(module, norm, nn.Identity())
    net.down = nn.ModuleList(_LargestOfTwo(pool) for pool in net.pools)
    net = net.to(memory_format=LAST[net.ndim])
    net.widened = nn.Identity()
    net.head = _Pointwise(net.head)
    net.heads = nn.ModuleDict({name: _Pointwise(head) for name, head in net.heads.items()})
    net.id_out = _Pointwise(net.id_out)
    return net


class Converted(_Standing):
    """A network that another library computes, on the CPU; `run` is given and returns arrays."""

    def __init__(
        self,
        net: nn.Module,
        backend: str,
        precision: str,
        run: Run,
    ) -> None:
        super().__init__(net, backend, precision)
        self.heads = heads(net)
        self.run = run

    def forward(self, x: torch.Tensor) -> Outputs:
        """Return the stored heads."""
        return self.inside(x, tuple(slice(0, n) for n in x.shape[2:]))

    def inside(self, x: torch.Tensor, box: grid.Box) -> Outputs:
        """Return the stored heads of a box in a window."""
        given = [x.contiguous().numpy()]
        if self.cuts:
            given.append(self.cuts(x.shape[2:], box))
        values = [torch.from_numpy(np.ascontiguousarray(one)).float() for one in self.run(*given)]
        found = dict(zip(self.heads, values, strict=True))
        return Outputs(**(found if self.cuts else of_box(found, box, self.id_stride)))


class _Heads(nn.Module):
    """Returns the stored heads as a tuple, as ONNX needs it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.heads = net, heads(net)

    def forward(
        self, x: torch.Tensor, cuts: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        found = (self.net(x) if cuts is None else self.net(x, cuts=cuts))._asdict()
        return tuple(found[name] for name in self.heads)


def heads(net: nn.Module) -> tuple[str, ...]:
    """Return the stored heads that a network has."""
    absent = {name for name, n in (("emb", net.emb_dim), ("sem", net.n_classes)) if not n}
    return tuple(name for name in STORED if name not in absent)


def prepare(
    net: nn.Module, backend: str, precision: str, device: torch.device, threads: int
) -> _Standing:
    """Return the network as it is to be computed.

    Parameters
    ----------
    backend : one of `BACKENDS`; auto is torch.
    precision : one of `PRECISIONS`; auto is int8 where the model was calibrated for it, else
        bfloat16, on devices that are fast with them. Float32 where the backend or the network
        cannot do otherwise.
    threads : how many blocks are computed at the same time, each by one thread.

    Raises
    ------
    OptionError
        The backend does not compute on this device, or not in this precision.
    InputError
        It is not installed, or it cannot compute this network.
    """
    if backend in ("auto", "torch"):
        return Torch(net.to(device), _of_torch(net, precision, device))
    if device.type != "cpu":
        raise OptionError(f"--backend {backend} computes on the CPU; use --device cpu, or torch")
    if precision == "int8":
        raise OptionError(f"--backend {backend} does not compute in int8; use torch")
    library = extras.imported(backend, "backends")
    makers = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    half = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    half = half and backend == "openvino"
    run = makers[backend](library, to_onnx(net, with_cuts=bool(net.cuts)), threads, half)
    return Converted(net, backend, "bfloat16" if half else "float32", run)


def _of_torch(net: nn.Module, precision: str, device: torch.device) -> str:
    """Return the precision in which PyTorch computes a network."""
    if not isinstance(net, IAUNet):
        return "float32"
    if precision == "int8":
        if not int8.is_quick(device):
            raise OptionError(
                f"--precision int8: {device} does not compute so (it needs VNNI); use auto"
            )
        if net.largest is None:
            raise OptionError(
                "--precision int8: the model is not calibrated for it; use auto, or calibrate.py"
            )
    if precision != "auto":
        return precision
    if net.largest is not None and int8.is_quick(device):
        return "int8"
    return "bfloat16" if has_bfloat16(device) else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def to_onnx(net: nn.Module, with_cuts: bool = False) -> bytes:
    """Return the network as ONNX, float32, with axes of any length.

    `with_cuts`: it has a second input, what is kept of features, see `IAUNet.cuts`.

    Raises
    ------
    InputError
        The network does something that ONNX has no word for.
    """
    extras.imported("onnx", "backends")
    heads_of = _Heads(net.cpu()).eval()  # the exporter leaves the mode as it finds it
    names = list(heads_of.heads)
    shape = [4 * step for step in net.stride]
    given = {"image": torch.zeros(1, 1, *shape)}
    if with_cuts:
        box = tuple(slice(step, 3 * step) for step in net.stride)
        given["cuts"] = torch.from_numpy(net.cuts(shape, box))
    axes = {2 + axis: f"n{axis}" for axis in range(net.ndim)}
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the exporter that needs no other library is old
            torch.onnx.export(
                heads_of, tuple(given.values()), file, dynamo=False, opset_version=OPSET,
                input_names=list(given), output_names=names, dynamic_axes={"image": axes},
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the network cannot be written as ONNX: {reason}; use torch") from error
    return file.getvalue()


def _onnxruntime(library: ModuleType, onnx: bytes, threads: int, half: bool) -> Run:
    options = library.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = library.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *given: session.run(None, dict(zip(names, given, strict=True)))


def _openvino(library: ModuleType, onnx: bytes, threads: int, half: bool) -> Run:
    core = library.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
    }
    model = core.compile_model(core.read_model(onnx), "CPU", options)
    own = threading.local()

    def run(*given: np.ndarray) -> list[np.ndarray]:
        if not hasattr(own, "request"):
            own.request = model.create_infer_request()
        own.request.infer(dict(enumerate(given)))
        return [own.request.get_output_tensor(k).data.copy() for k in range(len(model.outputs))]

    return run
