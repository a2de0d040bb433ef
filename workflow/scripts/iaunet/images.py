"""Open TIFF, PNG, OME-Zarr and files of microscopes as one thing: one channel, (z,) y, x."""

import functools
import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet.errors import InputError
from iaunet.grid import Box, box_shape
from iaunet.scenes import Scene

COLOURS = ["red", "green", "blue", "alpha"]
STAINS = ["hematoxylin", "eosin", "dab"]
"""Channels that are computed of colours, chosen by name: brightfield, unmixed by skimage."""
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
LARGEST_PNG_BYTES = 1 << 31
BLOCK_BYTES = 16 << 20
ROWS_BYTES = 64 << 20


@dataclass
class Image:
    """One channel of one scene at one time, read box by box.

    Attributes
    ----------
    axes : tuple of str
        ("y", "x") or ("z", "y", "x"), whatever the order in the file.
    dtype : dtype
        Native integers as they are stored; bool is read as uint8, all floats as float32.
    pixel_um : tuple of float, or None
        Per axis; None when it is not known for every axis.
    """

    path: Path
    format: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: np.dtype
    pixel_um: tuple[float, ...] | None
    partial_pixel_um: dict[str, float]
    channel: str
    scene: str
    frame: int
    warnings: list[str]
    _scene: Scene
    _fixed: dict[int, int]
    _order: tuple[int, ...]
    _stain: int | None = None

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    def read(self, box: Box | None = None) -> np.ndarray:
        """Return the values of a box, or of the whole image, axes in the order of `axes`."""
        if box is None:
            box = tuple(slice(0, n) for n in self.shape)
        wanted = dict(zip(self._order, box, strict=True))
        raw = [
            wanted.get(axis, slice(self._fixed.get(axis, 0), self._fixed.get(axis, 0) + 1))
            for axis in range(len(self._scene.shape))
        ]
        if self._stain is None:
            values = self._scene.read(tuple(raw))
        else:
            colours = self._scene.axes.index("s")
            raw[colours] = slice(0, 3)
            values = _stain(self._scene.read(tuple(raw)), colours, self._stain)
        kept = tuple(axis for axis in range(len(raw)) if axis in wanted)
        values = values.reshape([values.shape[axis] for axis in kept])
        values = values.transpose([kept.index(axis) for axis in self._order])
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity
            return np.ascontiguousarray(values, self.dtype).reshape(box_shape(box))

    def __getitem__(self, box: Box) -> np.ndarray:
        """Return what `read` does: an image can stand where an array is sliced."""
        return self.read(box)

    def blocks(self, align_px: Sequence[int], max_bytes: int | None = None) -> Iterator[Box]:
        """Yield boxes of about `max_bytes` that partition the image, in the order of the file.

        They start at multiples of `align_px` and are as wide as the limit allows, a power of two
        times that of `align_px`; by default 16 MB, or 64 MB where whole rows lie together in the
        file.
        """
        max_bytes = max_bytes or (ROWS_BYTES if self._scene.full_rows else BLOCK_BYTES)
        row_bytes = math.prod(align_px[:-1]) * self.dtype.itemsize
        most = max(1, max_bytes // (row_bytes * align_px[-1]))
        width = (1 << (most.bit_length() - 1)) * align_px[-1]
        sizes = (*align_px[:-1], width)
        starts = [range(0, n, size) for n, size in zip(self.shape, sizes, strict=True)]
        for corner in itertools.product(*starts):
            yield tuple(
                slice(start, min(start + size, n))
                for start, size, n in zip(corner, sizes, self.shape, strict=True)
            )


def open_image(
    path: Path | str,
    channel: str | int | None = None,
    scene: str | int | None = None,
    frame: str | int | None = None,
) -> Image:
    """Open one channel of one scene at one time point; reads no pixels (a PNG: all).

    Nothing is guessed: where the file has several and none is chosen, the error lists them.
    """
    path = Path(path)
    file_format, found = _scenes(path)
    one = found[_choice(path, "scene", [item.name for item in found], scene)]
    _check(path, one)
    axes = _axes(path, one)
    fixed: dict[int, int] = {}
    frame_index = 0
    if "t" in axes:
        names = [str(index) for index in range(one.shape[axes.index("t")])]
        frame_index = _choice(path, "frame", names, frame)
        fixed[axes.index("t")] = frame_index
    else:
        _choice(path, "frame", ["0"], frame)
    names = _channel_names(one, axes)
    wanted = str(channel).strip().casefold()
    stain = STAINS.index(wanted) if wanted in _stains(one, axes) else None
    channel_index = 0
    if stain is None:
        channel_index = _choice(path, "channel", names, channel, hidden=_n_alpha(one, axes))
    samples = one.shape[axes.index("s")] if "s" in axes else 1
    if "c" in axes:
        fixed[axes.index("c")] = channel_index // samples
    if "s" in axes:
        fixed[axes.index("s")] = channel_index % samples
    order = tuple(axes.index(axis) for axis in "zyx" if axis in axes)
    kept = tuple(axes[index] for index in order)
    pixel = tuple(one.pixel_um.get(axis) for axis in kept)
    return Image(
        path=path,
        format=file_format,
        shape=tuple(one.shape[index] for index in order),
        axes=kept,
        dtype=np.dtype(np.float32) if stain is not None else _plain_dtype(one.dtype),
        pixel_um=None if None in pixel else pixel,
        partial_pixel_um=dict(one.pixel_um),
        channel=names[channel_index] if stain is None else STAINS[stain],
        scene=one.name,
        frame=frame_index,
        warnings=one.warnings,
        _scene=one,
        _fixed=fixed,
        _order=order,
        _stain=stain,
    )


def describe(path: Path | str, scene: str | None = None) -> dict[str, object]:
    """Return quick facts of a scene, else of the first one, from the headers alone.

    Keys: shape, axes (as stored), dtype, channels, stains, scenes, n_frames, spatial_shape (z, y, x
    or y, x), spatial_axes, format, pixel_um (by axis) and n_bytes (one channel at one time,
    uncompressed).
    """
    path = Path(path)
    file_format, found = _headers(path, path.stat().st_mtime_ns if path.exists() else 0)
    one = found[0 if scene is None else _choice(path, "scene", [s.name for s in found], scene)]
    _check(path, one)
    axes = _axes(path, one)
    spatial = tuple(axis for axis in "zyx" if axis in axes)
    spatial_shape = tuple(one.shape[axes.index(axis)] for axis in spatial)
    names = _channel_names(one, axes)
    return {
        "shape": one.shape,
        "axes": tuple(one.axes),
        "dtype": str(one.dtype),
        "channels": names[: len(names) - _n_alpha(one, axes)],
        "stains": _stains(one, axes),
        "scenes": [item.name for item in found],
        "n_frames": one.shape[axes.index("t")] if "t" in axes else 1,
        "spatial_shape": spatial_shape,
        "spatial_axes": spatial,
        "format": file_format,
        "pixel_um": dict(one.pixel_um),
        "n_bytes": math.prod(spatial_shape) * _plain_dtype(one.dtype).itemsize,
    }


@functools.lru_cache(maxsize=1)
def _headers(path: Path, changed_ns: int) -> tuple[str, list[Scene]]:
    """Return the scenes of a file; rows of one file that follow one another open it once."""
    return _scenes(path, header_only=True)


def _scenes(path: Path, header_only: bool = False) -> tuple[str, list[Scene]]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; correct the path")
    if path.is_dir():
        from iaunet import ngff

        if not ngff.is_zarr(path):
            raise InputError(f"{path}: a folder that is not an OME-Zarr; give an image file")
        return ngff.scenes(path)
    with path.open("rb") as file:
        start = file.read(33)
    from iaunet import tiff

    if start[:4] in tiff.MAGIC:
        return tiff.scenes(path)
    if start.startswith(PNG_MAGIC):
        return "PNG", [_png(path, start, header_only)]
    from iaunet import vendors

    if (suffix := vendors.kind_of(path, start)) is not None:
        return vendors.scenes(path, suffix)
    if not start:
        raise InputError(f"{path}: an empty file; copy the image again")
    return vendors.others(path)


def _png(path: Path, start: bytes, header_only: bool) -> Scene:
    if len(start) < 33 or start[12:16] != b"IHDR":
        raise InputError(f"{path}: truncated PNG; copy or export it again")
    width, height, depth, colour = struct.unpack(">IIBB", start[16:26])
    samples = PNG_SAMPLES.get(colour)
    n_bytes = width * height * (samples or 1) * (2 if depth == 16 else 1)
    if samples is None or not 0 < n_bytes <= LARGEST_PNG_BYTES:
        raise InputError(
            f"{path}: PNG of {width} x {height} px, colour type {colour}; at most "
            f"{LARGEST_PNG_BYTES:,} bytes of pixels are read, save it as a tiled TIFF"
        )
    shape = (height, width) if samples == 1 else (height, width, samples)
    dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
    axes = "yx" if samples == 1 else "yxs"
    if header_only:
        return Scene(path.stem, axes, shape, dtype, read=lambda box: np.empty(0))
    import imagecodecs

    content = path.read_bytes()
    # What cannot be packed grows by a filter byte per row and by less than a hundredth.
    most = math.prod(shape) * dtype.itemsize * 1.01 + 8 * height + (64 << 10)
    if _check_png(path, content) > most:
        raise InputError(f"{path}: PNG with more data than {width} x {height} px have; damaged")
    try:
        values = imagecodecs.png_decode(content)
    except Exception as error:  # libpng's messages arrive as several classes
        raise InputError(f"{path}: damaged PNG ({error}); copy or export it again") from error
    axes = "yx" if values.ndim == 2 else "yxs"
    return Scene(path.stem, axes, values.shape, values.dtype, read=lambda box: values[box])


def _check_png(path: Path, content: bytes) -> int:
    """Refuse damaged chunks: the decoder would only warn and return other pixels.

    Returns the bytes of packed pixels.
    """
    at, kind, n_packed = len(PNG_MAGIC), b"", 0
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", content[at : at + 8].ljust(8, b"\0"))
        end = at + 8 + length
        chunk, checksum = content[at + 4 : end], content[end : end + 4]
        if len(checksum) < 4 or zlib.crc32(chunk) != struct.unpack(">I", checksum)[0]:
            raise InputError(f"{path}: damaged or truncated PNG; copy or export it again")
        n_packed += length if kind == b"IDAT" else 0
        at += 12 + length
    return n_packed


def _check(path: Path, scene: Scene) -> None:
    if 0 in scene.shape:
        raise InputError(f"{path}: an axis has length zero (shape {scene.shape}); nothing to read")
    n_axes = sum(n > 1 for n in scene.shape)
    if n_axes > 5:
        raise InputError(
            f"{path}: {n_axes} axes (shape {scene.shape}); at most 5 are read: t, c, z, y, x"
        )
    if scene.dtype.kind not in "buif" or scene.dtype.itemsize > 8:
        raise InputError(
            f"{path}: pixels are {scene.dtype}; need integers or floats, save the image as such"
        )
    scene.check()


def _axes(path: Path, scene: Scene) -> str:
    """Return the axis letters; a single long axis without a meaning is taken for z."""
    axes = "".join(
        "-" if axis == "q" and n == 1 else axis
        for axis, n in zip(scene.axes, scene.shape, strict=True)
    )
    axes = "".join(
        "-" if n == 1 and axis == "z" else axis for axis, n in zip(axes, scene.shape, strict=True)
    )
    unknown = axes.count("q")
    if unknown == 1 and "z" not in axes:
        axes = axes.replace("q", "z")
    elif unknown:
        raise InputError(
            f"{path}: the meaning of {unknown} axes of shape {scene.shape} is unknown; save it as "
            "OME-TIFF, ImageJ TIFF or OME-Zarr with named axes"
        )
    known = axes.replace("-", "")
    if "y" not in axes or "x" not in axes or len(set(known)) < len(known):
        raise InputError(f"{path}: axes are '{scene.axes}'; need one y and one x axis")
    return axes


def _channel_names(scene: Scene, axes: str) -> list[str]:
    n_channels = scene.shape[axes.index("c")] if "c" in axes else 1
    samples = scene.shape[axes.index("s")] if "s" in axes else 1
    names = [str(index) for index in range(n_channels)]
    if len(scene.channels) == n_channels:
        names = scene.channels
    if samples == 1:
        return names
    colours = {2: ["grey", "alpha"], 3: COLOURS[:3], 4: COLOURS}.get(
        samples, [str(index) for index in range(samples)]
    )
    if n_channels == 1:
        return colours
    return [f"{name} {colour}" for name in names for colour in colours]


def _n_alpha(scene: Scene, axes: str) -> int:
    """Return how many of the last channels are transparency, not something to segment."""
    plain = "c" not in axes or scene.shape[axes.index("c")] == 1
    return int(plain and "s" in axes and scene.shape[axes.index("s")] in (2, 4))


def _stains(scene: Scene, axes: str) -> list[str]:
    """Return the stains that can be unmixed: of one colour image of unsigned integers."""
    plain = "c" not in axes or scene.shape[axes.index("c")] == 1
    coloured = "s" in axes and scene.shape[axes.index("s")] in (3, 4)
    return STAINS if plain and coloured and scene.dtype.kind == "u" else []


def _stain(values: np.ndarray, axis: int, stain: int) -> np.ndarray:
    """Return the density of one stain, pixel by pixel, float32; `axis` is that of the colours.

    Colour deconvolution of Ruifrok and Johnston 2001 with their vectors. White and brighter is 0.
    """
    from skimage.color import hed_from_rgb, separate_stains

    colours = np.moveaxis(values, axis, -1) / np.float32(np.iinfo(values.dtype).max)
    density = separate_stains(colours, hed_from_rgb)[..., stain]
    return np.expand_dims(density.astype(np.float32), axis)


def _choice(
    path: Path, column: str, names: list[str], wanted: str | int | None, hidden: int = 0
) -> int:
    """Return the index that `wanted` (a name or an index) stands for among `names`."""
    listed = ", ".join(
        str(index) if name == str(index) else f"{index} ({name})"
        for index, name in enumerate(names[:30])
    ) + (", ..." if len(names) > 30 else "")
    wanted = None if wanted is None else str(wanted).strip()
    if not wanted:
        if len(names) - hidden == 1:
            return 0
        raise InputError(
            f"{path}: has {len(names)} {column}s: {listed}; fill in the column '{column}' "
            f"(option --{column}) with an index or a name"
        )
    by_name = [index for index, name in enumerate(names) if name == wanted]
    by_index = [int(wanted)] if wanted.isdecimal() and int(wanted) < len(names) else []
    if not by_name and not by_index:
        by_name = [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
    matches = sorted({*by_name, *by_index})
    if len(matches) == 1:
        return matches[0]
    problem = "is not among" if not matches else "is ambiguous among"
    raise InputError(
        f"{path}: {column} '{wanted}' {problem} the {len(names)} {column}s: {listed}; "
        f"correct the column '{column}' (option --{column})"
    )


def _plain_dtype(dtype: np.dtype) -> np.dtype:
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("=")
