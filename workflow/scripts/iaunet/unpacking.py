"""Codecs of Zarr that refuse bombs: numcodecs unpacks whatever it is given, however large.

Importing this module registers them, for Zarr v2 and v3. What a chunk unpacks to is known before
it is unpacked (blosc, lz4, zstd say it), or unpacking stops there (gzip, zlib, bz2, lzma).
"""

import bz2
import lzma
import math
import zlib
from collections.abc import Callable
from functools import cached_property

import imagecodecs
import numcodecs
import zarr
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ndarray_copy
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.buffer.cpu import as_numpy_array_wrapper

LARGEST_CHUNK = 1 << 29
"""Bytes that a chunk may unpack to."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
HARMLESS = [
    "bytes",
    "transpose",
    "crc32c",
    "sharding_indexed",
    "delta",
    "shuffle",
    "fixedscaleoffset",
    "bitround",
    "quantize",
    "astype",
    "packbits",
    "adler32",
    "crc32",
    "fletcher32",
    "jenkins_lookup3",
]
"""Names of codecs that unpack nothing."""


def _stream(content: bytes, machine: Callable[[], object], most: int) -> bytes:
    """Return what one or several streams unpack to; stop beyond `most` bytes."""
    parts, left = [], most
    while content:
        unpacking = machine()
        parts.append(unpacking.decompress(content, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise ValueError(f"unpacks to more than {most:,} bytes")
        if not unpacking.eof:
            raise ValueError("packed data end too early")
        content = unpacking.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _zstd_bytes(content: bytes) -> int | None:
    """Return what a frame says that it unpacks to (RFC 8878, 3.1.1.1); None: it does not."""
    if content[:4] != ZSTD_MAGIC or len(content) < 18:
        return None
    flags = content[4]
    single = flags >> 5 & 1
    size = (single, 2, 4, 8)[flags >> 6]
    first = 6 - single + (0, 1, 2, 4)[flags & 3]
    told = int.from_bytes(content[first : first + size], "little") + (256 if size == 2 else 0)
    return told if size else None


def _check(n_bytes: int) -> None:
    if n_bytes > LARGEST_CHUNK:
        raise ValueError(f"unpacks to {n_bytes:,} bytes; at most {LARGEST_CHUNK:,} are read")


def _streaming(codec: type[Codec], machine: Callable[[], object]) -> type[Codec]:
    """Return the codec with a decoder that stops."""

    class Bounded(codec):
        codec_id = codec.codec_id

        def decode(self, buf: object, out: object = None) -> object:
            most = getattr(self, "most", LARGEST_CHUNK)
            return ndarray_copy(_stream(ensure_bytes(buf), machine, most), out)

    return Bounded


def _telling(codec: type[Codec], told: Callable[[bytes], int]) -> type[Codec]:
    """Return the codec with a decoder that looks first at the size that its header says."""

    class Bounded(codec):
        codec_id = codec.codec_id

        def decode(self, buf: object, out: object = None) -> object:
            _check(told(bytes(memoryview(buf)[:8])))
            return super().decode(buf, out)

    return Bounded


class Zstd(numcodecs.Zstd):
    """Zstd; a frame that does not say its size is unpacked into what is allowed."""

    def decode(self, buf: object, out: object = None) -> object:
        """Return what a buffer unpacks to."""
        content = ensure_bytes(buf)
        told = _zstd_bytes(content)
        _check(told or 0)
        # numcodecs would add up what several frames say.
        most = LARGEST_CHUNK if told is None else told
        return ndarray_copy(imagecodecs.zstd_decode(content, out=most), out)


V2 = {
    "gzip": _streaming(numcodecs.GZip, lambda: zlib.decompressobj(31)),
    "zlib": _streaming(numcodecs.Zlib, zlib.decompressobj),
    "bz2": _streaming(numcodecs.BZ2, bz2.BZ2Decompressor),
    "lzma": _streaming(numcodecs.LZMA, lzma.LZMADecompressor),
    "blosc": _telling(numcodecs.Blosc, lambda head: int.from_bytes(head[4:8], "little")),
    "lz4": _telling(numcodecs.LZ4, lambda head: int.from_bytes(head[:4], "little")),
    "zstd": Zstd,
}


class Gzip3(GzipCodec):
    """Gzip of Zarr v3."""

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        codec = V2["gzip"](self.level)
        codec.most = _widest(math.prod(chunk_spec.shape) * chunk_spec.dtype.item_size)
        return as_numpy_array_wrapper(codec.decode, chunk_bytes, chunk_spec.prototype)


class Zstd3(ZstdCodec):
    """Zstd of Zarr v3."""

    @cached_property
    def _zstd_codec(self) -> Codec:
        return Zstd.from_config({"level": self.level, "checksum": self.checksum})


class Blosc3(BloscCodec):
    """Blosc of Zarr v3."""

    @cached_property
    def _blosc_codec(self) -> Codec:
        settings = super()._blosc_codec.get_config()
        del settings["id"]
        return V2["blosc"].from_config(settings)


for name, bounded in V2.items():
    numcodecs.register_codec(bounded, name)
for name, bounded in (("gzip", Gzip3), ("zstd", Zstd3), ("blosc", Blosc3)):
    zarr.registry.register_codec(name, bounded, qualname=f"{__name__}.{bounded.__name__}")
    zarr.config.set({f"codecs.{name}": f"{__name__}.{bounded.__name__}"})


def _widest(n_bytes: int) -> int:
    """Return the bytes that a chunk of so many may have before other codecs: eight times wider."""
    return min(8 * n_bytes + 1024, LARGEST_CHUNK)


def expect(metadata: object, n_bytes: int) -> None:
    """Let the chunks of an array of Zarr v2 unpack to what they hold, and no more."""
    if metadata.zarr_format == 2 and metadata.compressor is not None:
        metadata.compressor.most = _widest(n_bytes)


def unbounded(metadata: object) -> list[str]:
    """Return the names of the codecs of an array that are not known to be safe."""
    if metadata.zarr_format == 2:
        used = [*(metadata.filters or ()), metadata.compressor]
        names = [codec.codec_id for codec in used if codec is not None]
    else:
        names = list(_names(metadata.codecs))
    return [name for name in names if name.removeprefix("numcodecs.") not in (*V2, *HARMLESS)]


def _names(codecs: object) -> list[str]:
    found = []
    for codec in codecs:
        found.append(codec.to_dict()["name"])
        found += _names((*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())))
    return found
