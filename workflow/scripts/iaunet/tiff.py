"""Read TIFF, BigTIFF, OME-TIFF, ImageJ hyperstacks and multi-page stacks; write label TIFFs."""

import contextlib
import itertools
import logging
import math
import os
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np
import tifffile

from iaunet.errors import InputError
from iaunet.grid import Box, box_shape, intersection, origin, shift
from iaunet.scenes import LARGEST_RATIO, LARGEST_UNCHECKED, Scene, to_um

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LARGEST_SEGMENT = 1 << 31
MOST_PLANES = 1 << 24
PLANES = ("IFD", "PlaneCount", "FirstC", "FirstZ", "FirstT")
CACHE_BYTES = 64 << 20
SMALL_RUN = 1 << 16
TILE_PX = 512
BIG_BYTES = 3 << 30
FATAL_LOGS = (
    "page offset",
    "offset to first page",
    "series raised",
    "missing data",
    "missing Byte",
)


class _Messages(logging.Handler):
    """Collect what tifffile only logs: a damaged file must not pass for a shorter one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def _messages() -> Iterator[list[str]]:
    logger = tifffile.logger()
    handler = _Messages()
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def scenes(path: Path) -> tuple[str, list[Scene]]:
    """Return the name of the format and the scenes (series) of a TIFF file; opens no pixels."""
    with _messages() as texts:
        try:
            file = tifffile.TiffFile(path)
            _check_chain(path, file)
            ome = _ome(path, file) if file.is_ome else None
            series = list(file.series)
            found = [one for one in series if one.keyframe is None or not one.keyframe.is_reduced]
            result = [_scene(path, file, one, ome, series.index(one)) for one in found or series]
        except InputError:
            raise
        except OSError:
            raise
        except Exception as error:  # tifffile raises what its parsers meet in hostile bytes
            raise InputError(f"{path}: damaged or unsupported TIFF ({error})") from error
    for text in texts:
        if any(fatal in text for fatal in FATAL_LOGS):
            raise InputError(f"{path}: truncated or damaged TIFF ({text}); export the file again")
    if not result:
        raise InputError(f"{path}: TIFF without any image")
    names = {"ome": "OME-TIFF", "imagej": "ImageJ TIFF"}
    kind = names.get(found[0].kind if found else "", "TIFF")
    return ("Big" + kind if file.is_bigtiff and kind == "TIFF" else kind), result


def _check_chain(path: Path, file: tifffile.TiffFile) -> None:
    """Refuse a chain of pages that comes back to one: tifffile would follow it for hours."""
    tiff, handle = file.tiff, file.filehandle
    order = "little" if file.byteorder == "<" else "big"
    offset, seen = file.pages.first.offset, set()
    while offset not in seen:
        seen.add(offset)
        handle.seek(offset)
        head = handle.read(tiff.tagnosize)
        n_tags = int.from_bytes(head, order)
        handle.seek(n_tags * tiff.tagsize, os.SEEK_CUR)
        offset = int.from_bytes(handle.read(tiff.offsetsize), order)
        if not 0 < offset < handle.size:
            return
    raise InputError(f"{path}: damaged TIFF: its pages form a circle; export the file again")


def _ome(path: Path, file: tifffile.TiffFile) -> ElementTree.Element:
    """Return the OME-XML of a file; it is looked at before tifffile believes what it says."""
    text = file.ome_metadata
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: OME-XML that declares entities; export the image again")
    ome = ElementTree.fromstring(text)
    n_pixels = math.prod(file.pages.first.shape) or 1
    for pixels in ome.findall("{*}Image/{*}Pixels"):
        sizes = [int(pixels.get(f"Size{axis}", 1)) for axis in "XYCZT"]
        if min(sizes) < 1 or math.prod(sizes) // n_pixels > MOST_PLANES:
            raise InputError(
                f"{path}: OME-XML says sizes x, y, c, z, t of {sizes}, which the file cannot have; "
                "export the image again"
            )
        found = pixels.findall("{*}TiffData")
        told = [one.get(name, "0") for one in found for name in PLANES]
        if not all(0 <= int(n) <= MOST_PLANES for n in told):
            raise InputError(
                f"{path}: OME-XML tells of planes {', '.join(told)[:200]}, which the file cannot "
                "have; export the image again"
            )
    for one in ome.findall(".//{*}UUID"):
        name = one.get("FileName", "")
        if PurePath(name).is_absolute() or ".." in PurePath(name.replace("\\", "/")).parts:
            raise InputError(
                f"{path}: OME-XML names the file '{name}'; all files of a set must lie in one "
                "folder"
            )
    return ome


def _scene(
    path: Path,
    file: tifffile.TiffFile,
    series: tifffile.TiffPageSeries,
    ome: ElementTree.Element | None,
    index: int,
) -> Scene:
    if series.dtype is None or series.keyframe is None:
        raise InputError(f"{path}: TIFF with pixels of an unknown type; save it as 8 or 16 bit")
    axes = "".join(_axis(letter) for letter in series.axes)
    scene = Scene(
        name=series.name or str(index),
        axes=axes,
        shape=tuple(series.shape),
        dtype=np.dtype(series.dtype),
        read=_Pages(path, series).read,
        full_rows=not series.keyframe.is_tiled,
    )
    if series.keyframe.photometric == 0:
        scene.warnings.append("TIFF is marked 'white is zero'; values are used as they are stored")
    if ome is not None and series.kind == "ome":
        _add_ome(scene, ome, index, n_series=len(file.series))
    elif file.is_imagej and series.kind == "imagej":
        _add_imagej(path, scene, file, series)
    if not scene.pixel_um:
        scene.pixel_um = _tag_pixel_um(series.keyframe)
    return scene


def _axis(letter: str) -> str:
    return letter.lower() if letter in "TCZYXS" else "q"


def _add_ome(scene: Scene, ome: ElementTree.Element, index: int, n_series: int) -> None:
    images = ome.findall("{*}Image")
    with_name = [image for image in images if image.get("Name") == scene.name]
    if len(images) == n_series:
        image = images[index]
    elif len(with_name) == 1:
        image = with_name[0]
    else:
        return
    scene.name = image.get("Name") or scene.name
    pixels = image.find("{*}Pixels")
    if pixels is None:
        return
    channels = pixels.findall("{*}Channel")
    names = [channel.get("Name") or str(index) for index, channel in enumerate(channels)]
    scene.channels = names
    for axis in "zyx":
        size = pixels.get(f"PhysicalSize{axis.upper()}")
        um = to_um(size, pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm"))
        if um:
            scene.pixel_um[axis] = um


def _add_imagej(
    path: Path, scene: Scene, file: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> None:
    meta = file.imagej_metadata or {}
    n_planes = math.prod(
        n for axis, n in zip(scene.axes, scene.shape, strict=True) if axis in "tczq"
    )
    declared = int(meta.get("images", 1) or 1)
    if declared > 1 and n_planes < declared:
        raise InputError(
            f"{path}: truncated ImageJ TIFF: {declared} planes are declared, {n_planes} are there"
        )
    unit = meta.get("unit", "")
    for axis, tag in (("x", "XResolution"), ("y", "YResolution")):
        um = to_um(_pixel_length(series.keyframe, tag), unit)
        if um and (um <= 20 or "inch" not in str(unit)):
            scene.pixel_um[axis] = um
    if scene.pixel_um:
        um = to_um(abs(float(meta.get("spacing", 0) or 0)), unit)
        if um:
            scene.pixel_um["z"] = um


def _pixel_length(page: tifffile.TiffPage, tag: str) -> float | None:
    """Return the length of a pixel in the unit of the resolution tag."""
    value = page.tags.valueof(tag)
    try:
        numerator, denominator = value
        return float(f"{denominator / numerator:.9g}")  # rationals: 0.16, not 0.15999999995
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _tag_pixel_um(page: tifffile.TiffPage) -> dict[str, float]:
    """Return the pixel size of resolution tags, unless it is that of a printer or a screen.

    Drawing programs write 72 to 1,200 dots per inch (353 to 21 um) into any file, so only
    sizes below 20 um in inch or cm are believed.
    """
    unit = {2: "inch", 3: "cm"}.get(int(page.tags.valueof("ResolutionUnit", 2) or 0), "")
    sizes = {
        axis: to_um(_pixel_length(page, tag), unit)
        for axis, tag in (("x", "XResolution"), ("y", "YResolution"))
    }
    if any(um is None or not 1e-3 <= um <= 20 for um in sizes.values()):
        return {}
    return sizes


class _Pages:
    """Read boxes of one series by strips, tiles or runs of bytes, never more than needed.

    A strip or tile that reaches beyond the box is kept (up to 64 MB), as the next box of a
    raster scan needs it. A compressed page stored as a single strip is decoded as a whole.
    """

    def __init__(self, path: Path, series: tifffile.TiffPageSeries) -> None:
        self.path = path
        self.series = series
        self.shape = tuple(series.shape)
        self.dtype = np.dtype(series.dtype)
        self.keyframe = series.keyframe
        self.file_bytes = path.stat().st_size
        self.cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.n_pages = len(series.pages)
        declared = math.prod(self.shape) * self.dtype.itemsize
        if declared > LARGEST_UNCHECKED and declared > LARGEST_RATIO * self.file_bytes:
            raise InputError(
                f"{path}: declares {declared:,} bytes of pixels but has {self.file_bytes:,} bytes; "
                "the file is truncated or damaged"
            )
        self.offset = series.dataoffset
        if self.offset is not None:
            self._check_extent(self.offset, declared, self.file_bytes)
        if self.keyframe.is_tiled:
            size = (self.keyframe.tilelength, self.keyframe.tilewidth, self.keyframe.tiledepth)
            if not all(isinstance(n, int) and n > 0 for n in size):
                raise InputError(f"{path}: damaged TIFF: tiles of {size}; export the file again")
        page_size = math.prod(self.keyframe.shaped)
        self.split = next(
            (k for k in range(len(self.shape) + 1) if math.prod(self.shape[k:]) == page_size), -1
        )
        if self.offset is None and (
            self.split < 0 or math.prod(self.shape[: self.split]) != self.n_pages
        ):
            raise InputError(
                f"{path}: TIFF with {self.n_pages} pages of {self.keyframe.shape} for an image of "
                f"{self.shape}; it is truncated or damaged"
            )
        if self.offset is None and self.keyframe.compression == 1:
            self._check_page(self.n_pages - 1)

    def read(self, box: Box) -> np.ndarray:
        """Return the values of a box of the series."""
        if self.offset is not None:
            file = self.keyframe.parent.filehandle
            return self._read_run(file, self.offset, self.shape, box, self.file_bytes)
        out = np.empty(box_shape(box), self.dtype.newbyteorder("="))
        lead, inner = box[: self.split], box[self.split :]
        for position in itertools.product(*(range(side.start, side.stop) for side in lead)):
            index = int(np.ravel_multi_index(position, self.shape[: self.split])) if lead else 0
            here = tuple(at - side.start for at, side in zip(position, lead, strict=True))
            out[here] = self._read_page(index, inner)
        return out

    def _page(self, index: int) -> tifffile.TiffPage | tifffile.TiffFrame:
        page = self.series.pages[index]
        if page is None:
            raise InputError(
                f"{self.path}: plane {index} is missing (a part of a multi-file OME-TIFF?); put "
                "all files of the set into one folder or export the image again"
            )
        if page.parent.filehandle.closed:
            page.parent.filehandle.open()
        return page

    def _check_page(self, index: int) -> None:
        page = self._page(index)
        for offset, n_bytes in zip(page.dataoffsets, page.databytecounts, strict=False):
            self._check_extent(offset, n_bytes, page.parent.filehandle.size)

    def _check_extent(self, offset: int, n_bytes: int, file_bytes: int) -> None:
        if not (isinstance(offset, Integral) and isinstance(n_bytes, Integral)):
            raise InputError(
                f"{self.path}: damaged TIFF: {n_bytes!r} bytes at {offset!r}; export it again"
            )
        if offset + n_bytes > file_bytes:
            raise InputError(
                f"{self.path}: truncated: its pixels end at byte {offset + n_bytes:,}, the file "
                f"has {file_bytes:,} bytes; copy or export it again"
            )

    def _read_page(self, index: int, box: Box) -> np.ndarray:
        page = self._page(index)
        shaped = self.keyframe.shaped
        sides = iter(side for side, n in zip(box, self.shape[self.split :], strict=True) if n > 1)
        lengths = tuple(n for n in self.shape[self.split :] if n > 1)
        if lengths != tuple(n for n in shaped if n > 1):
            whole = self._read_box(index, page, tuple(slice(0, n) for n in shaped))
            return whole.reshape(self.shape[self.split :])[box]
        full = tuple(next(sides) if n > 1 else slice(0, 1) for n in shaped)
        return self._read_box(index, page, full).reshape(box_shape(box))

    def _read_box(self, index: int, page: tifffile.TiffPage, box: Box) -> np.ndarray:
        """Return a box of a page in its full form (sample, depth, length, width, sample)."""
        if page.is_final and len(page.dataoffsets):
            file = page.parent.filehandle
            return self._read_run(file, page.dataoffsets[0], self.keyframe.shaped, box, file.size)
        out = np.empty(box_shape(box), self.dtype.newbyteorder("="))
        for segment_index, place in self._segments(box):
            data = self._segment(index, page, segment_index, keep=intersection(place, box) != place)
            part = intersection(place, box)
            out[shift(part, origin(box))] = data[None][shift(part, origin(place))]
        return out

    def _segments(self, box: Box) -> Iterator[tuple[int, Box]]:
        """Yield index and place (cut at the page) of the strips or tiles that meet a box."""
        keyframe = self.keyframe
        samples, depth, length, width, contiguous = keyframe.shaped
        size = (1, 1, min(keyframe.rowsperstrip or length, length), width)
        if keyframe.is_tiled:
            size = (1, keyframe.tiledepth or 1, keyframe.tilelength, keyframe.tilewidth)
        counts = [-(-n // m) for n, m in zip((samples, depth, length, width), size, strict=True)]
        ranges = [
            range(side.start // m, -(-side.stop // m))
            for side, m in zip(box[:4], size, strict=True)
        ]
        for position in itertools.product(*ranges):
            place = tuple(
                slice(at * m, min((at + 1) * m, n))
                for at, m, n in zip(position, size, keyframe.shaped[:4], strict=True)
            )
            yield int(np.ravel_multi_index(position, counts)), (*place, slice(0, contiguous))

    def _segment(
        self, index: int, page: tifffile.TiffPage, segment_index: int, keep: bool
    ) -> np.ndarray:
        key = (index, segment_index)
        if key in self.cache:
            return self.cache[key]
        data = self._decode(index, page, segment_index)
        if keep:
            self.cache[key] = data
            while len(self.cache) > 1 and sum(a.nbytes for a in self.cache.values()) > CACHE_BYTES:
                self.cache.popitem(last=False)
        return data

    def _decode(self, index: int, page: tifffile.TiffPage, segment_index: int) -> np.ndarray:
        keyframe = self.keyframe
        try:
            offset, n_bytes = page.dataoffsets[segment_index], page.databytecounts[segment_index]
        except IndexError:
            offset, n_bytes = 0, 0
        if not offset or not n_bytes:
            raise InputError(
                f"{self.path}: plane {index} has no data for strip or tile {segment_index}; "
                "the file is incomplete, export it again"
            )
        file = page.parent.filehandle
        self._check_extent(offset, n_bytes, file.size)
        rows, columns = min(keyframe.rowsperstrip, keyframe.imagelength), keyframe.imagewidth
        if keyframe.is_tiled:
            rows, columns = keyframe.tilelength, keyframe.tilewidth
        decoded = rows * columns * self.dtype.itemsize
        if decoded > LARGEST_SEGMENT:
            raise InputError(
                f"{self.path}: one strip or tile decodes to {decoded:,} bytes; save the image "
                "as a tiled TIFF or OME-Zarr"
            )
        arguments = {"_fullsize": False}
        if keyframe.compression in {6, 7, 34892, 33007}:
            arguments |= {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        with file.lock:
            file.seek(offset)
            data = file.read(n_bytes)
        try:
            values = keyframe.decode(data, segment_index, **arguments)[0]
        except Exception as error:  # codecs raise classes of their own on damaged data
            raise InputError(
                f"{self.path}: plane {index}, strip or tile {segment_index} cannot be decoded "
                f"({error}); the file is damaged or its compression is not supported"
            ) from error
        return values

    def _read_run(
        self,
        file: tifffile.FileHandle,
        offset: int,
        shape: tuple[int, ...],
        box: Box,
        file_bytes: int,
    ) -> np.ndarray:
        """Return a box of an array that lies uncompressed at `offset`, by runs of bytes."""
        dtype = self.dtype.newbyteorder(self.keyframe.parent.byteorder)
        self._check_extent(offset, math.prod(shape) * dtype.itemsize, file_bytes)
        # Axes before k are looped over, axis k is one run, those after k are cut in memory.
        k = len(shape) - 1
        while k > 0 and (
            box[k] == slice(0, shape[k]) or math.prod(shape[k:]) * dtype.itemsize <= SMALL_RUN
        ):
            k -= 1
        inner = math.prod(shape[k + 1 :])
        out = np.empty(box_shape(box), dtype)
        cut = box[k + 1 :] != tuple(slice(0, n) for n in shape[k + 1 :])
        run = np.empty((box[k].stop - box[k].start, *shape[k + 1 :]), dtype) if cut else None
        for position in itertools.product(*(range(side.start, side.stop) for side in box[:k])):
            first = 0
            for at, n in zip(position, shape[:k], strict=True):
                first = first * n + at
            first = (first * shape[k] + box[k].start) * inner * dtype.itemsize
            here = out[tuple(at - side.start for at, side in zip(position, box[:k], strict=True))]
            target = run if cut else here
            with file.lock:
                file.seek(offset + first)
                n_read = file.readinto(target)
            if n_read != target.nbytes:
                raise InputError(
                    f"{self.path}: {n_read:,} of {target.nbytes:,} bytes at {offset + first:,}; "
                    "the file became shorter, copy or export it again"
                )
            if cut:
                here[...] = run[(slice(None), *box[k + 1 :])]
        if not dtype.isnative:
            out = out.byteswap(inplace=True).view(dtype.newbyteorder("="))
        return out


def write_labels(
    path: Path,
    labels: object,
    pixel_um: Sequence[float] | None = None,
    ome: bool = False,
) -> None:
    """Write labels as a tiled, compressed TIFF, plane by plane; BigTIFF where it must be.

    Parameters
    ----------
    labels : array-like with shape, dtype and slicing, axes y, x or z, y, x
    pixel_um : pixel size per axis, written where `ome`
    ome : with OME-XML; labels have at most 32 bits then
    """
    height, width = labels.shape[-2:]

    def pieces() -> Iterator[np.ndarray]:
        for plane in itertools.product(*map(range, labels.shape[:-2])):
            for y in range(0, height, TILE_PX):
                row = labels[(*plane, slice(y, y + TILE_PX))]
                for x in range(0, width, TILE_PX):
                    piece = row[:, x : x + TILE_PX]
                    yield np.pad(piece, [(0, TILE_PX - length) for length in piece.shape])

    axes = "ZYX"[-len(labels.shape) :]
    metadata = {"axes": axes}
    if ome:
        # Without one given, tifffile makes a UUID of the time: other bytes in every run.
        name = f"{axes} {labels.shape} {pixel_um}"
        metadata |= {"Name": "labels", "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, name))}
        for axis, um in zip(axes, pixel_um or (), strict=bool(pixel_um)):
            metadata |= {f"PhysicalSize{axis}": um, f"PhysicalSize{axis}Unit": "µm"}
    tifffile.imwrite(
        path,
        pieces(),
        shape=labels.shape,
        dtype=labels.dtype,
        tile=(TILE_PX, TILE_PX),
        compression="zlib",
        bigtiff=labels.size * labels.dtype.itemsize > BIG_BYTES,
        metadata=metadata,
        ome=ome,
        photometric="minisblack",
    )


def write_imagej_labels(
    path: Path,
    labels: object,
    dtype: np.dtype | type,
    pixel_um: Sequence[float] | None,
    boxes: Iterable[Box],
) -> None:
    """Write labels as an uncompressed ImageJ TIFF, box by box, in one run of bytes.

    ImageJ and Fiji open it without a plug-in, also beyond 4 GB.

    Parameters
    ----------
    labels : array-like with shape and slicing, axes y, x or z, y, x
    dtype : uint8, uint16 or float32, which are what ImageJ has
    boxes : partition the labels
    """
    metadata: dict[str, object] = {"axes": "ZYX"[-len(labels.shape) :]}
    resolution = None
    if pixel_um:
        metadata["unit"] = "um"
        resolution = (1 / pixel_um[-1], 1 / pixel_um[-2])
        if len(pixel_um) == 3:
            metadata["spacing"] = pixel_um[0]
    shape = tuple(labels.shape)
    with warnings.catch_warnings():
        # Beyond 4 GB only the first plane has a header, as ImageJ writes it; nothing is lost.
        warnings.filterwarnings("ignore", message=".*truncating ImageJ file")
        array = tifffile.memmap(
            path, shape=shape, dtype=dtype, imagej=True, metadata=metadata, resolution=resolution
        )
    stored, offset = array.dtype, array.offset
    del array
    for box in boxes:
        # Mapped anew: what a mapping has touched counts as memory until it is closed.
        part = np.memmap(path, stored, "r+", offset, shape)
        part[box] = labels[box]
        del part
