"""Read BioImage.IO packages (format 0.4 and 0.5): a TorchScript network and what is said of it.

A package is a zip file or a folder with ``rdf.yaml`` (or ``bioimageio.yaml``). Nothing is
unpacked to disk, nothing is downloaded, and no source code of a package is run: weights other
than ``torchscript`` are not read. Only preprocessing that is the same for all tiles of an image
is accepted: percentiles of the whole image, then fixed factors and limits.
"""

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from iaunet.errors import InputError

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
MAX_DESCRIPTION = 2**20
MAX_WEIGHTS = 2 * 2**30
SPACE = "zyx"


@dataclass(frozen=True)
class Package:
    """A network and what its package says, in the words of `adopt.py`.

    `facts` may have ndim, stride, halo, scores, percentiles, clip, gain, shift and all keys of
    the section ``config: iaunet:``; `outputs` are the names of the outputs, in order.
    """

    content: bytes
    outputs: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    origin: dict[str, object] = field(default_factory=dict)


def is_package(path: Path) -> bool:
    """Tell whether a path is a folder, or a zip file, with a description."""
    if path.is_dir():
        return any((path / name).is_file() for name in DESCRIPTIONS)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name in archive.namelist() for name in DESCRIPTIONS)
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return False


def read(path: Path) -> Package:
    """Return the network of a package and what is said of it.

    Raises
    ------
    InputError
        No TorchScript weights inside, a wrong checksum, or inputs, outputs or preprocessing that
        this project does not have.
    """
    name = next((n for n in DESCRIPTIONS if _exists(path, n)), None)
    if name is None:
        raise InputError(
            f"{path}: no {' or '.join(DESCRIPTIONS)} in it; needs a BioImage.IO package"
        )
    try:
        described = yaml.safe_load(_member(path, name, MAX_DESCRIPTION).decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name} is not YAML ({' '.join(str(error).split())})") from error
    try:
        facts = _facts(described, path)
        weights = _weights(described, path)
        outputs = [str(one.get("id", one.get("name"))) for one in described["outputs"]]
        origin = {
            key: str(described[key])[:200]
            for key in ("name", "version", "license", "id")
            if described.get(key)
        }
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: {name}: not a model description ({error!r})") from error
    return Package(weights, outputs, facts, origin)


def _exists(path: Path, name: str) -> bool:
    if path.is_dir():
        return (path / name).is_file()
    with _archive(path) as archive:
        return name in archive.namelist()


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise InputError(f"{path}: damaged, or not a zip file ({error})") from error


def _member(path: Path, name: str, max_bytes: int) -> bytes:
    """Return a file of a package; it lies inside and is no larger than `max_bytes`."""
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
        raise InputError(
            f"{path}: '{name}' is no file of the package; needs one with the weights inside"
        )
    try:
        if path.is_dir():
            full = (path / name).resolve()
            if not full.is_relative_to(path.resolve()):
                raise InputError(f"{path}: '{name}' leads out of the folder; refused")
            with full.open("rb") as file:
                content = file.read(max_bytes + 1)
        else:
            with _archive(path) as archive:
                info = archive.getinfo(str(place))
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise InputError(f"{path}: '{name}' is a link; needs a file")
                with archive.open(info) as file:
                    content = file.read(max_bytes + 1)
    except (KeyError, OSError) as error:
        raise InputError(f"{path}: no file '{name}' in the package") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: '{name}' is damaged or encrypted ({error})") from error
    if len(content) > max_bytes:
        raise InputError(f"{path}: '{name}' unpacks to more than {max_bytes} bytes; refused")
    return content


def _weights(described: Mapping, path: Path) -> bytes:
    weights = described["weights"]
    if "torchscript" not in weights:
        raise InputError(
            f"{path}: weights are {', '.join(weights)}; needs torchscript weights: other formats "
            "run source code of the package, or have no layers to check"
        )
    entry = weights["torchscript"]
    source = entry["source"]
    source = source["source"] if isinstance(source, Mapping) else source
    content = _member(path, str(source), MAX_WEIGHTS)
    wanted = entry.get("sha256")
    found = hashlib.sha256(content).hexdigest()
    if wanted is not None and str(wanted).lower() != found:
        raise InputError(
            f"{path}: '{source}' has sha256 {found[:12]}, the description says "
            f"{str(wanted)[:12]}: damaged or exchanged; get the package again"
        )
    return content


def _facts(described: Mapping, path: Path) -> dict[str, object]:
    if len(described["inputs"]) != 1:
        raise InputError(f"{path}: {len(described['inputs'])} inputs; needs one")
    given = described["inputs"][0]
    axes = _axes(given)
    spatial = [axis for axis in axes if axis in SPACE]
    if axes[:2] != ["b", "c"] or axes[2:] != list(SPACE)[-len(spatial) :] or len(spatial) < 2:
        raise InputError(f"{path}: input axes {' '.join(axes)}; needs b c y x or b c z y x")
    sizes = dict(zip(axes, _sizes(given), strict=True))
    if sizes["c"][0] != 1:
        raise InputError(f"{path}: the network takes {sizes['c'][0]} channels; needs one")
    facts: dict[str, object] = {"ndim": len(spatial)}
    if all(sizes[axis][1] for axis in spatial):
        facts["stride"] = [sizes[axis][1] for axis in spatial]
    facts |= _preprocessing(given, spatial, path)
    facts |= _halo(described["outputs"], spatial)
    facts |= _postprocessing(described["outputs"], path)
    ours = (described.get("config") or {}).get("iaunet") or {}
    if not isinstance(ours, Mapping):
        raise InputError(f"{path}: config, iaunet: needs a mapping of keys to values")
    return facts | dict(ours)


def _axes(tensor: Mapping) -> list[str]:
    """Return one letter per axis: b, c, t, i, z, y or x."""
    axes = tensor["axes"]
    if isinstance(axes, str):
        return list(axes)
    named = [str(axis.get("id") or axis["type"]) for axis in axes]
    return [{"batch": "b", "channel": "c"}.get(name, name) for name in named]


def _sizes(tensor: Mapping) -> list[tuple[int | None, int | None]]:
    """Return least size and step per axis; None where it is not said or fixed."""
    if isinstance(tensor["axes"], str):
        shape = tensor["shape"]
        if isinstance(shape, Mapping):
            pairs = zip(shape["min"], shape["step"], strict=True)
            return [(int(least), int(step) or None) for least, step in pairs]
        return [(int(size), None) for size in shape]
    found: list[tuple[int | None, int | None]] = []
    for axis in tensor["axes"]:
        size = axis.get("size", 1)
        if axis["type"] == "channel" and "channel_names" in axis:
            size = len(axis["channel_names"])
        if isinstance(size, Mapping):
            found.append((int(size["min"]), int(size["step"])) if "step" in size else (None, None))
        else:
            found.append((int(size), None))
    return found


def _halo(outputs: Sequence[Mapping], spatial: Sequence[str]) -> dict[str, object]:
    """Return the largest halo that the outputs declare, px per axis."""
    largest = dict.fromkeys(spatial, 0)
    for output in outputs:
        axes = _axes(output)
        halos = output.get("halo") or [0] * len(axes)
        if not isinstance(output["axes"], str):
            halos = [axis.get("halo") or 0 for axis in output["axes"]]
        for axis, halo in zip(axes, halos, strict=True):
            if axis in largest:
                largest[axis] = max(largest[axis], int(halo))
    return {"halo": list(largest.values())} if any(largest.values()) else {}


def _preprocessing(tensor: Mapping, spatial: Sequence[str], path: Path) -> dict[str, object]:
    """Return percentiles, clip, gain and shift; they are applied in this order."""
    facts: dict[str, object] = {}
    for one in tensor.get("preprocessing") or []:
        name, options = str(one.get("id", one.get("name"))), dict(one.get("kwargs") or {})
        later = {"scale_range": ("percentiles", "clip", "gain"), "clip": ("clip", "gain")}
        order = any(key in facts for key in later.get(name, ()))
        if name == "scale_range" and not order:
            facts["percentiles"] = _percentiles(options, spatial, path)
        elif name == "clip" and "percentiles" in facts and not order:
            facts["clip"] = [options.get("min"), options.get("max")]
        elif name == "scale_linear" and "percentiles" in facts and "gain" not in facts:
            facts["gain"] = _single(options.get("gain", 1.0), path)
            facts["shift"] = _single(options.get("offset", 0.0), path)
        elif name != "ensure_dtype":
            raise InputError(
                f"{path}: preprocessing '{name}' {options or ''} is not the same for all tiles of "
                "an image, or not in the order scale_range, clip, scale_linear; needs a network "
                "that takes intensities scaled by percentiles of the whole image"
            )
    if "percentiles" in facts:
        facts.setdefault("clip", [None, None])
    return facts


def _percentiles(options: Mapping, spatial: Sequence[str], path: Path) -> list[float]:
    axes = options.get("axes", options.get("axis"))
    letters = [{"channel": "c", "batch": "b"}.get(str(axis), str(axis)) for axis in axes or []]
    per_sample = options.get("mode", "per_sample") == "per_sample"
    if not per_sample or options.get("reference_tensor") is not None:
        raise InputError(
            f"{path}: preprocessing scale_range over a data set or by another tensor; needs "
            "percentiles of each image"
        )
    if axes is not None and not set(spatial) <= set(letters):
        raise InputError(
            f"{path}: preprocessing scale_range over axes {', '.join(letters)}; needs "
            f"{', '.join(spatial)}: percentiles of the whole image"
        )
    return [float(options.get("min_percentile", 0)), float(options.get("max_percentile", 100))]


def _single(value: object, path: Path) -> float:
    values = value if isinstance(value, Sequence) else [value]
    if len(values) != 1:
        raise InputError(f"{path}: preprocessing scale_linear has {len(values)} values; needs one")
    return float(values[0])


def _postprocessing(outputs: Sequence[Mapping], path: Path) -> dict[str, object]:
    """Return that fg and seed are logits where the package applies a sigmoid to an output."""
    names = {
        str(one.get("id", one.get("name")))
        for output in outputs
        for one in output.get("postprocessing") or []
    }
    other = names - {"sigmoid", "ensure_dtype"}
    if other:
        raise InputError(
            f"{path}: postprocessing {', '.join(sorted(other))} is not in this project; needs "
            "outputs as the network gives them, or sigmoid"
        )
    return {"scores": "logits"} if "sigmoid" in names else {}
