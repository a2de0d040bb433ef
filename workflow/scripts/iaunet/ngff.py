"""Read OME-Zarr 0.4 (Zarr v2) and 0.5 (Zarr v3) images of other programs, and plain Zarr arrays."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import zarr

from iaunet import unpacking
from iaunet.errors import InputError
from iaunet.grid import Box
from iaunet.scenes import LARGEST_RATIO, LARGEST_UNCHECKED, Scene, to_um

SMALL_CHUNK, MOST_SMALL_CHUNKS = 4096, 1 << 20
METADATA_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a Zarr array or group."""
    return path.is_dir() and any((path / name).is_file() for name in METADATA_FILES)


def scenes(path: Path) -> tuple[str, list[Scene]]:
    """Return the name of the format and the images of a Zarr store; opens no pixels."""
    try:
        return _scenes(path)
    except InputError:
        raise
    except Exception as error:  # hostile JSON fails in many places of zarr and of this module
        kind = type(error).__name__
        raise InputError(f"{path}: damaged or unsupported Zarr ({kind}: {error})") from error


def _scenes(path: Path) -> tuple[str, list[Scene]]:
    node = zarr.open(str(path), mode="r")
    version = node.metadata.zarr_format
    if isinstance(node, zarr.Array):
        names = getattr(node.metadata, "dimension_names", None)
        names = names or node.attrs.get("_ARRAY_DIMENSIONS")
        axes = _letters(names) if names else _unnamed_axes(node.ndim)
        return f"Zarr v{version} array", [_scene(path, path.name, node, axes)]
    name = "OME-Zarr 0.5" if "ome" in node.attrs else "OME-Zarr 0.4"
    found = list(_group_scenes(path, node))
    if not found:
        raise InputError(
            f"{path}: Zarr group without multiscale images; give the path of an OME-Zarr image"
        )
    return name, found


def _group_scenes(path: Path, group: zarr.Group) -> Iterator[Scene]:
    attributes = _ome(group)
    if "plate" in attributes:
        for well in attributes["plate"]["wells"]:
            well_group = group[well["path"]]
            for image in _ome(well_group)["well"]["images"]:
                name = f"{well['path']}/{image['path']}"
                for scene in _group_scenes(path / name, group[name]):
                    scene.name = name
                    yield scene
    elif "multiscales" in attributes:
        yield from _multiscale_scenes(path, group, attributes)
    elif "bioformats2raw.layout" in attributes:
        for index in itertools.count():
            if not is_zarr(path / str(index)):
                return
            yield from _group_scenes(path / str(index), group[str(index)])


def _ome(group: zarr.Group) -> Mapping:
    attributes = group.attrs.asdict()
    return attributes.get("ome", attributes)


def _multiscale_scenes(path: Path, group: zarr.Group, attributes: Mapping) -> Iterator[Scene]:
    channels = attributes.get("omero", {}).get("channels", [])
    for index, multiscale in enumerate(attributes["multiscales"]):
        array = group[multiscale["datasets"][0]["path"]]
        smallest = group.get(multiscale["datasets"][-1]["path"])
        described = multiscale.get("axes") or list("tczyx"[-array.ndim :])
        described = [{"name": one} if isinstance(one, str) else one for one in described]
        if len(described) != array.ndim:
            raise InputError(
                f"{path}: {len(described)} axes are described for an array of {array.ndim} axes"
            )
        axes = _letters([axis["name"] for axis in described])
        scene = _scene(
            path / multiscale["datasets"][0]["path"],
            multiscale.get("name") or f"{path.name}" + (f" {index}" if index else ""),
            array,
            axes,
            smallest=smallest,
            is_label="image-label" in attributes,
        )
        scene.channels = [
            str(channel.get("label") or number) for number, channel in enumerate(channels)
        ]
        scale = _scale(multiscale, array.ndim)
        for axis, one, step in zip(axes, described, scale, strict=True):
            um = to_um(step, one.get("unit"))
            if axis in "zyx" and um:
                scene.pixel_um[axis] = um
        yield scene


def _letters(names: list[str]) -> str:
    known = {"t": "t", "time": "t", "c": "c", "channel": "c", "z": "z", "y": "y", "x": "x"}
    return "".join(known.get(str(name).lower(), "q") for name in names)


def _unnamed_axes(ndim: int) -> str:
    return "q" * (ndim - 2) + "yx" if ndim >= 2 else "x" * ndim


def _scale(multiscale: Mapping, ndim: int) -> list[float]:
    scale = [1.0] * ndim
    transforms = [
        *multiscale.get("coordinateTransformations", []),
        *multiscale["datasets"][0].get("coordinateTransformations", []),
    ]
    for transform in transforms:
        if transform.get("type") == "scale":
            scale = [a * float(b) for a, b in zip(scale, transform["scale"], strict=True)]
    return scale


def _scene(
    folder: Path,
    name: str,
    array: zarr.Array,
    axes: str,
    smallest: zarr.Array | None = None,
    is_label: bool = False,
) -> Scene:
    chunks = _Chunks(folder, array, axes, smallest)
    return Scene(
        name=name,
        axes=axes,
        shape=tuple(array.shape),
        dtype=np.dtype(array.dtype),
        read=chunks.read,
        warnings=chunks.warnings,
        check=chunks.check_size if is_label else chunks.check,
    )


class _Chunks:
    """Read boxes of one array and look at the files behind them.

    Zarr defines an absent chunk as filled with the fill value, and writers leave out empty
    chunks; but a chunk that was lost looks the same. So: an array without any chunk is
    refused, an absent chunk whose region is not empty in the smallest level is refused,
    and others are filled with a warning.
    """

    def __init__(
        self, folder: Path, array: zarr.Array, axes: str, smallest: zarr.Array | None
    ) -> None:
        self.folder = folder
        self.array = array
        self.axes = axes
        self.smallest = smallest if smallest is not None and smallest.path != array.path else None
        self.grid = tuple(array.shards or array.chunks)
        if min(self.grid, default=1) < 1 or min(array.shape, default=0) < 0:
            raise InputError(f"{folder}: damaged Zarr: chunks of {self.grid}, shape {array.shape}")
        unknown = unpacking.unbounded(array.metadata)
        if unknown:
            raise InputError(
                f"{folder}: chunks are packed with {', '.join(unknown)}, which is not read; write "
                "the store with blosc, zstd or gzip"
            )
        n_bytes = math.prod(array.chunks) * array.dtype.itemsize
        if n_bytes > unpacking.LARGEST_CHUNK:
            raise InputError(
                f"{folder}: chunks of {array.chunks} have {n_bytes:,} bytes; at most "
                f"{unpacking.LARGEST_CHUNK:,} are read, write the store with smaller ones"
            )
        unpacking.expect(array.metadata, n_bytes)
        self.absent: set[tuple[int, ...]] = set()
        self.warnings: list[str] = []

    def check(self) -> None:
        """Refuse an array of which not enough is there, or in too many pieces."""
        self.check_any()
        self.check_size()

    def check_size(self) -> None:
        """Refuse an array of very many tiny chunks."""
        n_bytes = math.prod(self.array.chunks) * self.array.dtype.itemsize
        n_chunks = math.prod(
            -(-n // m) for n, m in zip(self.array.shape, self.array.chunks, strict=True)
        )
        if n_bytes < SMALL_CHUNK and n_chunks > MOST_SMALL_CHUNKS:
            raise InputError(
                f"{self.folder}: {n_chunks:,} chunks of {n_bytes} bytes, which would take hours to "
                f"read; write the store with chunks of at least {SMALL_CHUNK:,} bytes"
            )

    def check_any(self) -> None:
        """Refuse an array of which no chunk is there, or far too little for its shape."""
        declared = math.prod(self.array.shape) * self.array.dtype.itemsize
        plausible = declared // LARGEST_RATIO if declared > LARGEST_UNCHECKED else 1
        found = 0
        for root, _, names in os.walk(self.folder):  # lazily: there may be millions
            for name in names:
                if name not in METADATA_FILES and not name.startswith("."):
                    found += (Path(root) / name).stat().st_size
            if found >= plausible:
                return
        if found:
            raise InputError(
                f"{self.folder}: declares {declared:,} bytes of pixels, but its chunks have "
                f"{found:,} bytes; copy the whole OME-Zarr again"
            )
        if declared:
            raise InputError(
                f"{self.folder}: no chunk of this array is there, only its metadata; copy the "
                "whole OME-Zarr again"
            )

    def read(self, box: Box) -> np.ndarray:
        """Return the values of a box."""
        self._look_for_chunks(box)
        try:
            return np.asarray(self.array[box])
        except Exception as error:  # codecs raise classes of their own on damaged chunks
            place = ", ".join(f"{side.start}:{side.stop}" for side in box)
            raise InputError(
                f"{self.folder}: damaged chunk within [{place}] "
                f"({type(error).__name__}: {error}); copy the store again"
            ) from error

    def _look_for_chunks(self, box: Box) -> None:
        ranges = [
            range(side.start // n, -(-side.stop // n))
            for side, n in zip(box, self.grid, strict=True)
        ]
        for position in itertools.product(*ranges):
            if position in self.absent:
                continue
            if not (self.folder / self.array.metadata.encode_chunk_key(position)).is_file():
                self.absent.add(position)
                self._judge(position)
                self.warnings[:] = [
                    f"{len(self.absent)} chunks are absent and read as the fill value "
                    f"{self.array.fill_value}"
                ]

    def _judge(self, position: tuple[int, ...]) -> None:
        if self.smallest is None:
            return
        box = tuple(
            slice(
                at * n * small // full,
                max(at * n * small // full + 1, (at + 1) * n * small // full),
            )
            for at, n, small, full in zip(
                position, self.grid, self.smallest.shape, self.array.shape, strict=True
            )
        )
        # Half a chunk border belongs to neighbours at the lower resolution: look inside only.
        inner = tuple(
            slice(side.start + 1, side.stop - 1) if side.stop - side.start > 2 else side
            for side in box
        )
        if np.any(np.asarray(self.smallest[inner]) != (self.array.fill_value or 0)):
            raise InputError(
                f"{self.folder}: chunk {'/'.join(map(str, position))} is absent, but "
                f"{self.smallest.path} shows that it was not empty; copy the store again"
            )
