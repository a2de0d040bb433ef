"""Model files: safetensors weights plus JSON with everything needed to rebuild the network.

No pickle is read or written. The header is read without torch, so that steps which only
need a model's numbers (stride, halo, thresholds) start at once. A network that others made is
stored as the bytes of its TorchScript file, see `foreign`.
"""

import difflib
import hashlib
import json
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path

from iaunet import checksums, cli
from iaunet.errors import InputError

FORMAT = "iaunet-model"
VERSION = 1
SUFFIX = ".safetensors"
TORCHSCRIPT = "torchscript"
"""Name of the only tensor of an adopted network, and of its contract in ``net``."""

MAX_HEADER = 16 * 2**20
LARGEST = 1e6
"""Of values between the convolutions of a network."""
REQUIRED = {
    "name": str,
    "ndim": int,
    "in_channels": int,
    "net": dict,
    "stride": list,
    "id_stride": list,
    "radius": list,
    "block": list,
    "normalize": dict,
    "max_offset": list,
    "max_sigma": list,
    "clustering": dict,
    "weights_sha256": str,
}


def resolve(name_or_path: str | Path, models_dir: Path | None) -> Path:
    """Return the model file that a name in `models_dir`, or a path, stands for."""
    text = str(name_or_path)
    named = None if models_dir is None or "/" in text else Path(models_dir) / f"{text}{SUFFIX}"
    if named is not None and named.is_file():
        return named
    if Path(text).exists():
        return Path(text)
    known = (
        [] if models_dir is None else sorted(p.stem for p in Path(models_dir).glob(f"*{SUFFIX}"))
    )
    near = difflib.get_close_matches(text, known, n=1)
    meant = f", did you mean '{near[0]}'" if near else ""
    raise InputError(
        f"model '{text}': no such file and no shipped model of that name{meant}; "
        f"shipped: {', '.join(known) or 'none'}"
    )


def read_meta(path: Path) -> dict:
    """Return the metadata of a model file, checked; needs no torch.

    Raises
    ------
    InputError
        The file is missing, truncated, not safetensors, or not one of our models.
    """
    meta, _ = _read_header(Path(path))
    return meta


def check_tiled_for(path: Path, noted: Mapping[str, str] | None) -> None:
    """Raise unless a model is the one that tile.py noted, if it did."""
    if noted is None:
        return
    found, needed = checksums.sha256_of_model(path), noted.get("sha256")
    if found != needed:
        raise InputError(
            f"{path}: another model than the image was tiled for (sha256 {found[:12]}, "
            f"tiles.json says {str(needed)[:12]}); run tile.py again"
        )


def digest(weights: dict) -> str:
    """Return the SHA-256 of names and values of all weights (name to tensor)."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _read_header(path: Path) -> tuple[dict, dict]:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise _not_adopted(path)
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] == b"PK\x03\x04":
                raise _not_adopted(path)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            raw = file.read(length) if 0 < length <= min(MAX_HEADER, size - 8) else None
    except OSError as error:
        raise InputError(f"{path}: cannot read the model: {error.strerror}") from error
    if raw is None:
        raise InputError(f"{path}: truncated, or not a model file; needs safetensors")
    try:
        header = json.loads(raw)
        strings = header.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        text = strings.get("iaunet")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a model file; needs safetensors") from error
    if text is None:
        raise InputError(f"{path}: safetensors of another program; needs a model of train.py")
    if size != 8 + length + end:
        raise InputError(
            f"{path}: truncated: {size} bytes, needs {8 + length + end}; copy it again"
        )
    return _checked(path, text), header


def _not_adopted(path: Path) -> InputError:
    command = ["--source", str(path), "--output", f"{path.stem}{SUFFIX}"]
    return InputError(
        f"{path}: a folder or zip archive, no model file; a BioImage.IO package or TorchScript "
        f"file is checked once and made a model by: python workflow/scripts/adopt.py "
        f"{shlex.join(command)}"
    )


def _checked(path: Path, text: str) -> dict:
    try:
        meta = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: the model's metadata are not JSON") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path}: safetensors of another program; needs a model of train.py")
    if meta.get("version") != VERSION:
        raise InputError(
            f"{path}: model format version {meta.get('version')}, this program reads {VERSION}"
        )
    for key, kind in REQUIRED.items():
        if not isinstance(meta.get(key), kind):
            raise InputError(f"{path}: the model's metadata have no valid '{key}'")
    ndim = meta["ndim"]
    for key, numbers in _per_axis(meta).items():
        good = isinstance(numbers, list) and all(
            isinstance(v, (int, float)) and 0 < v < 1e5 for v in numbers
        )
        if ndim not in (2, 3) or not good or len(numbers) != ndim:
            raise InputError(f"{path}: the model's '{key}' needs {ndim} positive numbers")
    return meta


def _per_axis(meta: dict) -> dict[str, object]:
    """Return what must be one number per axis: sizes of the network, and what it was made for."""
    keys = ("stride", "id_stride", "radius", "block", "max_offset", "max_sigma")
    found = {key: meta[key] for key in keys}
    if meta.get("pixel_um") is not None:
        found["pixel_um"] = meta["pixel_um"]
    sizes = meta.get("diameter_px")
    if sizes is not None:
        for name in ("smallest", "largest"):
            found[f"diameter_px, {name}"] = sizes.get(name) if isinstance(sizes, dict) else None
    return found


def save(path: Path, weights: dict, meta: dict) -> None:
    """Write weights (name to tensor) and metadata as one file, whole or not at all."""
    from safetensors.torch import save_file

    facts = {"format": FORMAT, "version": VERSION, **meta, "weights_sha256": digest(weights)}
    text = json.dumps(facts, sort_keys=True)
    with cli.write_whole(Path(path)) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors would let nobody else read the model
        save_file({k: v.contiguous() for k, v in weights.items()}, partial, {"iaunet": text})
        partial.chmod(mode)


def save_foreign(path: Path, content: bytes, meta: dict) -> None:
    """Write a TorchScript file and metadata as one model file, whole or not at all."""
    import torch

    save(path, {TORCHSCRIPT: torch.frombuffer(bytearray(content), dtype=torch.uint8)}, meta)


def load(path: Path) -> tuple["IAUNet | Foreign", dict]:  # noqa: F821
    """Return the network of a model file in inference mode, and its metadata.

    Raises
    ------
    InputError
        As `read_meta`; or weights and metadata do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    meta = read_meta(path)
    make = _adopted if TORCHSCRIPT in meta["net"] else _rebuilt
    try:
        stored = load_file(path)
        if digest(stored) != meta["weights_sha256"]:
            raise InputError(f"{path}: damaged: the weights are not those that were saved")
        return make(path, stored, meta).eval(), meta
    except (SafetensorError, TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: not a usable model: {error}") from error


def _adopted(path: Path, stored: dict, meta: dict) -> "Foreign":  # noqa: F821
    """Return the network that others made."""
    from iaunet import foreign

    contract = foreign.Contract(**meta["net"][TORCHSCRIPT])
    net = foreign.Foreign(stored[TORCHSCRIPT].numpy().tobytes(), contract, str(path))
    _agree(path, meta, stride=net.stride, id_stride=net.id_stride)
    return net


def _rebuilt(path: Path, stored: dict, meta: dict) -> "IAUNet":  # noqa: F821
    """Return our network with the stored weights."""
    import torch

    from iaunet import int8, net

    weights = {key: value.float() for key, value in stored.items()}
    try:
        with torch.device("meta"):  # without memory: the metadata may say any size
            wanted = net.IAUNet(**meta["net"]).state_dict()
    except RuntimeError as error:
        raise InputError(f"{path}: no network has the sizes of its metadata") from error
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in weights.items()}:
        raise InputError(f"{path}: weights of another architecture than its metadata say")
    model = net.IAUNet(**meta["net"])
    model.load_state_dict(weights)
    radius = net.dependency_radius(model)
    _agree(path, meta, stride=model.stride, id_stride=model.id_stride, radius=radius)
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise InputError(f"{path}: the weights hold NaN or infinity")
    if meta.get("int8") is not None:
        model.largest = _calibrated(path, meta["int8"], int8.channels(model))
    return model


def _calibrated(path: Path, facts: object, channels: Mapping[str, int]) -> dict[str, list[float]]:
    """Return the largest values of the channels of a network, checked."""
    largest = facts.get("largest") if isinstance(facts, dict) else None
    good = isinstance(largest, dict) and set(largest) == set(channels)
    good = good and all(
        isinstance(values, list)
        and len(values) == channels[name]
        and all(isinstance(v, (int, float)) and 0 <= v < LARGEST for v in values)
        for name, values in largest.items()
    )
    if not good:
        raise InputError(f"{path}: what it says for int8 is not of its network; calibrate it again")
    return largest


def _agree(path: Path, meta: dict, **declared: tuple[int, ...]) -> None:
    for key, found in declared.items():
        if list(found) != list(meta[key]):
            raise InputError(
                f"{path}: metadata say {key} {meta[key]}, the network has {list(found)}"
            )
