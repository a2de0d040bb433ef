"""Networks that others made: TorchScript files with the heads of this project.

`Foreign` stands where `IAUNet` stands. What a TorchScript file does not tell (stride, which
channel is which head, logits or probabilities) is its `Contract`.

A TorchScript file is a zip archive of tensors, of code in TorchScript, and of small pickles.
``torch.jit.load`` reads those with an unpickler of its own, in C++, which makes tensors and
TorchScript objects only: no Python class is imported and no Python code runs. TorchScript itself
can read and write files (``torch.save``, ``torch.from_file``), call operators of other
libraries, and run code while it is loaded (``__setstate__``): archives with any of these are
refused before they are loaded.
"""

import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from iaunet import grid
from iaunet.errors import InputError
from iaunet.net import Outputs, of_box

HEADS = ("fg", "seed", "off", "lsig", "id")
ID_CHANNELS = 16
MAX_BYTES = 2 * 2**30
MAX_CODE = 16 * 2**20
# In the archive, operators of libraries other than PyTorch are called as ``ops.name``.
FORBIDDEN = re.compile(
    r"\b(torch\.(?:save|load|from_file)|__setstate__|__torch__\.torch\.classes|ops\.(?!prim\b)\w+\.\w+\()"
)


@dataclass(frozen=True)
class Contract:
    """What a TorchScript file does not tell of its network.

    Attributes
    ----------
    ndim : 2 or 3 image axes.
    stride : px per axis of which windows are multiples.
    heads : head to where it is: ``"OUTPUT"`` or ``"OUTPUT:FIRST-LAST"``, the index or the name
        of an output and channels in it. fg, seed and off are needed.
    scores : whether fg and seed are "logits" or "probabilities".
    max_offset, max_sigma : px per axis, larger ones are cut.
    sigma : bandwidth in px per axis where there is no head lsig.
    gain, shift : the network is given gain * x + shift of intensities that are 0 and 1 at the
        limits of the image.
    id_stride : px per cell of the identity map; of the map of zeros where there is no head id.
    """

    ndim: int
    stride: tuple[int, ...]
    heads: Mapping[str, str]
    scores: str
    max_offset: tuple[float, ...]
    max_sigma: tuple[float, ...]
    sigma: tuple[float, ...] | None = None
    gain: float = 1.0
    shift: float = 0.0
    id_stride: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("stride", "max_offset", "max_sigma", "sigma", "id_stride"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON can store it."""
        return asdict(self)


class Foreign(nn.Module):
    """A TorchScript network that answers as `IAUNet` does.

    Parameters
    ----------
    content : bytes
        The TorchScript file.
    contract : Contract
        What the file does not tell.
    name : str
        Of the file, for messages.
    """

    def __init__(self, content: bytes, contract: Contract, name: str) -> None:
        super().__init__()
        _check_contract(contract, name)
        self.name = name
        self.contract = contract
        self.ndim = contract.ndim
        self.stride = contract.stride
        self.id_stride = contract.id_stride or contract.stride
        self.emb_dim = self.n_classes = 0
        self.cuts = None  # what it computes cannot be cut
        self.scripted = load(content, name)
        # Taken before the first run, after which calls may be gone from it.
        self.graph = self.scripted.inlined_graph
        column = (1, self.ndim, *(1,) * self.ndim)
        for key, values in (
            ("max_offset", torch.tensor(contract.max_offset, dtype=torch.float32)),
            ("max_lsig", torch.tensor(contract.max_sigma, dtype=torch.float32).log()),
            ("lsig", torch.tensor(contract.sigma or (1,) * self.ndim, dtype=torch.float32).log()),
        ):
            self.register_buffer(key, values.reshape(column), persistent=False)
        # A network whose weights are constants has no parameter that tells its device.
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    @property
    def options(self) -> dict[str, object]:
        """There are none: the network cannot be rebuilt, hence not be trained."""
        raise InputError(
            f"{self.name}: an adopted network cannot be trained; needs one of train.py"
        )

    def forward(self, x: torch.Tensor) -> Outputs:
        """Return the outputs for (1, 1, [Z,] Y, X), checked to be finite."""
        found = self.heads(x)
        for name, value in found.items():
            if not bool(value.isfinite().all()):
                raise InputError(
                    f"{self.name}: head {name} is NaN or infinite; correct the network"
                )
        return self.outputs(found)

    def inside(self, x: torch.Tensor, box: grid.Box) -> Outputs:
        """Return the outputs of a box in a window; the network computes the whole window."""
        found = self(x)._asdict()
        found = {name: value for name, value in found.items() if value is not None}
        return Outputs(**of_box(found, box, self.id_stride))

    def heads(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the network says, by head, as it says it, float32.

        Raises
        ------
        InputError
            The network fails, or its outputs are not those that the contract tells.
        """
        given = x
        if (self.contract.gain, self.contract.shift) != (1.0, 0.0):
            given = self.contract.gain * x + self.contract.shift
        outputs = named_outputs(self.run(given))
        return {
            head: self._head(outputs, head, place, x.shape)
            for head, place in self.contract.heads.items()
        }

    def run(self, x: torch.Tensor) -> object:
        """Return the outputs of the scripted network as they are."""
        try:
            # Optimised execution may fuse operations after the first runs, which rounds otherwise.
            with torch.jit.optimized_execution(False):
                return self.scripted(x)
        except RuntimeError as error:
            raise InputError(
                f"{self.name}: the network fails on a window of shape {tuple(x.shape)}: "
                f"{_last_line(error)}; correct ndim or stride"
            ) from error

    def _head(
        self, outputs: Mapping[str, torch.Tensor], head: str, place: str, shape: Sequence[int]
    ) -> torch.Tensor:
        output, channels = parsed_place(place)
        if output not in outputs:
            raise InputError(
                f"{self.name}: head {head}: no output '{output}'; the network has "
                f"{', '.join(outputs) or 'none'}"
            )
        value = outputs[output]
        if value.ndim != self.ndim + 2 or value.shape[0] != shape[0]:
            raise InputError(
                f"{self.name}: head {head}: output '{output}' has shape {tuple(value.shape)} for a "
                f"window of shape {tuple(shape)}; needs (1, channels, ...) with {self.ndim} axes"
            )
        if channels is not None and channels.stop > value.shape[1]:
            raise InputError(
                f"{self.name}: head {head}: no channel {channels.stop - 1} in output '{output}', "
                f"which has {value.shape[1]}"
            )
        value = value if channels is None else value[:, channels]
        wanted = {"fg": (1,), "seed": (1,), "off": (self.ndim,), "lsig": (1, self.ndim)}
        wanted["id"] = tuple(range(1, ID_CHANNELS + 1))
        if value.shape[1] not in wanted[head]:
            raise InputError(
                f"{self.name}: head {head} has {value.shape[1]} channels, needs "
                f"{' or '.join(str(n) for n in wanted[head][:2])}"
                f"{f' to {ID_CHANNELS}' if head == 'id' else ''}"
            )
        if head != "id" and value.shape[2:] != shape[2:]:
            raise InputError(
                f"{self.name}: head {head} has size {tuple(value.shape[2:])} for a window of "
                f"{tuple(shape[2:])}; needs the same size"
            )
        return value.float()

    def outputs(self, found: Mapping[str, torch.Tensor]) -> Outputs:
        """Return heads as `IAUNet` gives them: logits, and cut to the largest values."""
        scores = {name: found[name] for name in ("fg", "seed")}
        if self.contract.scores == "probabilities":
            scores = {name: value.clamp(0, 1).logit() for name, value in scores.items()}
        off = torch.minimum(torch.maximum(found["off"], -self.max_offset), self.max_offset)
        lsig = found.get("lsig", self.lsig).expand_as(off)
        lsig = torch.minimum(lsig.clamp(min=0), self.max_lsig)
        return Outputs(**scores, off=off, lsig=lsig, id=self._identity(found, off))

    def _identity(self, found: Mapping[str, torch.Tensor], off: torch.Tensor) -> torch.Tensor:
        """Return 16 channels; those that the network does not have are 0."""
        if "id" in found:
            missing = ID_CHANNELS - found["id"].shape[1]
            zeros = found["id"].new_zeros((1, missing, *found["id"].shape[2:]))
            return torch.cat([found["id"], zeros], 1)
        cells = [n // step for n, step in zip(off.shape[2:], self.id_stride, strict=True)]
        return off.new_zeros((1, ID_CHANNELS, *cells))


def load(content: bytes, name: str) -> torch.jit.ScriptModule:
    """Return the TorchScript network of a file's content, in evaluation mode, on the CPU.

    Raises
    ------
    InputError
        Not TorchScript, or it does what a network has no need of, or weights are not finite.
    """
    check_archive(content, name)
    if not _survives(content, name):
        raise InputError(f"{name}: PyTorch crashes while it reads this file; damaged or hostile")
    return _read(content, name)


def _read(content: bytes, name: str) -> torch.jit.ScriptModule:
    """Return the network of an archive; every weight is looked at."""
    try:
        network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except Exception as error:  # the classes are those of C++, and of the names in the file
        raise InputError(f"{name}: not readable as TorchScript: {_last_line(error)}") from error
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(f"{name}: the weights '{key}' hold NaN or infinity")
    return network


def _survives(content: bytes, name: str) -> bool:
    """Tell whether PyTorch reads a file without a crash, in a process of its own.

    Its reader of TorchScript trusts what stands in the archive, and may end with a signal.
    """
    child = os.fork()
    if child == 0:
        try:
            _read(content, name)
        finally:
            os._exit(0)  # errors are told when it is read again
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)


def check_archive(content: bytes, name: str) -> None:
    """Raise unless a file is a TorchScript archive of bounded size without forbidden code."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        entries = archive.infolist()
        codes = [entry for entry in entries if re.search(r"(^|/)code/.*\.py$", entry.filename)]
        size = sum(entry.file_size for entry in entries)
        if size > MAX_BYTES or sum(entry.file_size for entry in codes) > MAX_CODE:
            raise InputError(f"{name}: unpacks to {size} bytes; needs at most {MAX_BYTES}")
        texts = [archive.read(entry).decode("utf-8") for entry in codes]
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        zlib.error,
    ) as error:
        raise InputError(f"{name}: damaged, or not a TorchScript file ({error})") from error
    if not codes:
        raise InputError(
            f"{name}: no TorchScript in it: a file of weights? export the network with "
            "torch.jit.script or torch.jit.trace"
        )
    for text in texts:
        found = FORBIDDEN.search(text)
        if found:
            raise InputError(
                f"{name}: its code uses {found[0]}, which a network has no need of; refused"
            )


def named_outputs(result: object) -> dict[str, torch.Tensor]:
    """Return the tensors that a network returned, by index, and by name where they have one."""
    if isinstance(result, torch.Tensor):
        return {"0": result}
    if isinstance(result, dict):
        pairs = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, (tuple, list)):
        pairs = [(str(index), value) for index, value in enumerate(result)]
        pairs += list(zip(getattr(result, "_fields", ()), result, strict=False))
    else:
        pairs = []
    return {name: value for name, value in pairs if isinstance(value, torch.Tensor)}


def parsed_place(place: str) -> tuple[str, slice | None]:
    """Return output and channels of a head's place.

    Examples
    --------
    >>> parsed_place("0:2-3"), parsed_place("seed")
    (('0', slice(2, 4, None)), ('seed', None))
    """
    found = re.fullmatch(r"([^:\s]+)(?::(\d{1,4})(?:-(\d{1,4}))?)?", place)
    if not found or (found[3] and int(found[3]) < int(found[2])):
        raise InputError(
            f"heads: found '{place}', needs OUTPUT, OUTPUT:CHANNEL or OUTPUT:FIRST-LAST, "
            "for example 0:2-3"
        )
    if not found[2]:
        return found[1], None
    return found[1], slice(int(found[2]), int(found[3] or found[2]) + 1)


def _check_contract(contract: Contract, name: str) -> None:
    missing = {"fg", "seed", "off"} - set(contract.heads)
    if missing:
        raise InputError(
            f"{name}: no head {', '.join(sorted(missing))}; needs fg, seed and off (lsig and id "
            "if it has them): say where they are with --heads, for example fg=0:0 off=0:2-3"
        )
    for head, place in contract.heads.items():
        if head not in HEADS:
            raise InputError(f"{name}: unknown head '{head}'; known: {', '.join(HEADS)}")
        parsed_place(place)
    if "lsig" not in contract.heads and contract.sigma is None:
        raise InputError(f"{name}: no head lsig; needs a bandwidth for all objects: --sigma, px")
    if contract.scores not in ("logits", "probabilities"):
        raise InputError(f"{name}: scores: '{contract.scores}'; needs logits or probabilities")
    for axis_stride in contract.stride:
        if axis_stride < 1 or not math.log2(axis_stride).is_integer():
            raise InputError(
                f"{name}: stride {list(contract.stride)}; needs powers of two: nearest upsampling "
                "by others rounds differently from place to place"
            )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
