"""How Zarr packs and unpacks the chunks of all arrays: one after the other, where it is called.

Zarr itself makes a task for every chunk and codec, and hands each to another thread and back; of
our shards this took more CPU time than the codecs did.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np
import zarr
from zarr.abc.store import ByteGetter, ByteSetter, RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.core import sync
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer, default_buffer_prototype
from zarr.core.chunk_grids import RegularChunkGrid
from zarr.core.codec_pipeline import BatchedCodecPipeline, fill_value_or_default
from zarr.core.indexing import BasicIndexer, SelectorTuple, morton_order_iter
from zarr.registry import register_pipeline
from zarr.storage import LocalStore

from iaunet.grid import Box, box_shape

# Where its bytes are, shape and type, the part of the chunk, that of the array, is it all of it.
Chunk = tuple[ByteGetter | ByteSetter, ArraySpec, SelectorTuple, SelectorTuple, bool]

NOWHERE = np.iinfo(np.uint64).max
"""Offset and length, in the index of a shard, of a chunk that is not there."""


class OneByOne(BatchedCodecPipeline):
    """Zarr's chain of codecs; those that can, work in the thread that calls them."""

    async def decode_batch(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        """Return what chunks unpack to."""
        if not self.is_direct or self._in_shards:
            return await super().decode_batch(chunk_bytes_and_specs)
        return [self._unpacked(packed, spec) for packed, spec in chunk_bytes_and_specs]

    async def encode_batch(
        self, chunk_arrays_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Return chunks, packed."""
        if not self.is_direct:
            return await super().encode_batch(chunk_arrays_and_specs)
        return [self._packed(values, spec) for values, spec in chunk_arrays_and_specs]

    async def read(
        self, batch_info: Iterable[Chunk], out: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> None:
        """Unpack chunks into `out`."""
        for chunk in batch_info:
            source, spec, part, place, _ = chunk
            plain = not drop_axes and all(
                isinstance(s, slice) and s.step in (1, None) for s in part
            )
            if self.is_direct and self._in_shards and plain:
                await self._read_shard(source, spec, part, out.as_numpy_array()[place])
            else:
                await self.read_batch([chunk], out, drop_axes)

    async def write(
        self, batch_info: Iterable[Chunk], value: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> None:
        """Write chunks; what a whole one held before is not read."""
        for chunk in batch_info:
            target, spec, _, place, whole = chunk
            direct = whole and value.shape and not drop_axes and self.is_direct
            part = value[place] if direct and spec.config.write_empty_chunks else None
            if part is None or len(part.shape) != len(spec.shape):
                await self.write_batch([chunk], value, drop_axes)
            else:
                await target.set(self._packed(part, spec))

    @cached_property
    def _in_shards(self) -> tuple["OneByOne", "OneByOne"] | None:
        """The codecs of the chunks in a shard and of its index; None: chunks are no shards."""
        codec = self.array_bytes_codec
        if not isinstance(codec, ShardingCodec):
            return None
        return self.from_codecs(codec.codecs), self.from_codecs(codec.index_codecs)

    @cached_property
    def is_direct(self) -> bool:
        """Tell whether all codecs can work in this thread."""
        own = tuple(self)
        if self._in_shards:
            at_end = self.array_bytes_codec.index_location.value == "end"
            private = hasattr(ShardingCodec, "_get_index_chunk_spec")
            if self.bytes_bytes_codecs or not (at_end and private):
                return False
            own = tuple(itertools.chain.from_iterable(self._in_shards))
            if any(chain._in_shards or chain.array_array_codecs for chain in self._in_shards):
                return False
        # What zarr.abc.codec.SupportsSyncCodec asks, which takes 0.1 ms.
        return not self.array_array_codecs and all(hasattr(c, "_encode_sync") for c in own)

    def _unpacked(self, chunk: Buffer | NDBuffer | None, spec: ArraySpec) -> NDBuffer | None:
        for codec in (*self.bytes_bytes_codecs[::-1], self.array_bytes_codec):
            chunk = None if chunk is None else codec._decode_sync(chunk, spec)
        return chunk

    def _packed(self, chunk: NDBuffer | None, spec: ArraySpec) -> Buffer | None:
        """Return a chunk, packed; what it lacks, beyond the end of the array, is filled."""
        if chunk is None:
            return None
        if self._in_shards:
            return spec.prototype.buffer.create_zero_length().combine(self.parts(chunk, spec))
        if chunk.shape != spec.shape:
            filled = np.full(spec.shape, fill_value_or_default(spec), chunk.dtype)
            filled[tuple(slice(0, n) for n in chunk.shape)] = chunk.as_numpy_array()
            chunk = spec.prototype.nd_buffer.from_numpy_array(filled)
        packed = self.array_bytes_codec._encode_sync(chunk, spec)
        for codec in self.bytes_bytes_codecs:
            packed = codec._encode_sync(packed, spec)
        return packed

    def parts(self, values: NDBuffer, spec: ArraySpec) -> list[Buffer]:
        """Return the parts of a shard: its chunks, but those beyond the array's end; its index."""
        if not self._in_shards:
            return [self._packed(values, spec)]
        codec, (inner, of_index) = self.array_bytes_codec, self._in_shards
        counts, of_chunk = self._counts(spec), replace(spec, shape=codec.chunk_shape)
        index = np.full((*counts, 2), NOWHERE, "<u8")
        parts, end = [], 0
        for corner in morton_order_iter(counts):
            sides = zip(corner, of_chunk.shape, strict=True)
            here = values[tuple(slice(k * n, (k + 1) * n) for k, n in sides)]
            if 0 not in here.shape:
                parts.append(inner._packed(here, of_chunk))
                index[corner] = end, len(parts[-1])
                end += len(parts[-1])
        table = spec.prototype.nd_buffer.from_numpy_array(index)
        return [*parts, of_index._packed(table, codec._get_index_chunk_spec(counts))]

    async def _read_shard(
        self, source: ByteGetter, spec: ArraySpec, part: SelectorTuple, out: np.ndarray
    ) -> None:
        """Unpack a part of a shard into an array; of the file only what is needed is read."""
        codec, (inner, of_index) = self.array_bytes_codec, self._in_shards
        counts, of_chunk = self._counts(spec), replace(spec, shape=codec.chunk_shape)
        of_table = codec._get_index_chunk_spec(counts)
        n_bytes = of_index.compute_encoded_size(16 * math.prod(counts), of_table)
        chunks = RegularChunkGrid(chunk_shape=codec.chunk_shape)
        wanted = list(BasicIndexer(part, shape=spec.shape, chunk_grid=chunks))
        everything = len(wanted) == math.prod(counts)
        end = await source.get(spec.prototype, None if everything else SuffixByteRequest(n_bytes))
        if end is None:
            out[...] = fill_value_or_default(spec)
            return
        index = of_index._unpacked(end[-n_bytes:], of_table).as_numpy_array()
        for corner, inside, place, _ in wanted:
            start, length = (int(n) for n in index[corner])
            packed = None
            if start != NOWHERE and everything:
                packed = end[start : start + length]
            elif start != NOWHERE:
                packed = await source.get(spec.prototype, RangeByteRequest(start, start + length))
            if packed is None:
                out[place] = fill_value_or_default(spec)
            else:
                out[place] = inner._unpacked(packed, of_chunk).as_numpy_array()[inside]

    def _counts(self, spec: ArraySpec) -> tuple[int, ...]:
        """Return how many chunks a shard has along each axis."""
        inner = self.array_bytes_codec.chunk_shape
        return tuple(n // m for n, m in zip(spec.shape, inner, strict=True))


register_pipeline(OneByOne)
# What goes through threads of zarr's own takes twice the CPU time with many of them.
SETTINGS = {"codec_pipeline.path": f"{__name__}.{OneByOne.__name__}", "threading.max_workers": 1}
"""Of Zarr, to use it; whoever opens arrays sets them."""
ZARRS_OWN = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
"""That without it, to compare with."""


def write(array: zarr.Array, box: Box, values: np.ndarray) -> None:
    """Write a chunk or shard, whole or cut at the end of an array.

    In a local folder, Zarr's threads would only hand it on and copy it. A file that a full disk or
    a kill cuts short stays: stores appear whole or not at all.
    """
    if values.shape != box_shape(box):
        raise ValueError(f"found values {values.shape}, needs {box_shape(box)}")
    chain, store = array.async_array.codec_pipeline, array.store
    local = isinstance(chain, OneByOne) and chain.is_direct and isinstance(store, LocalStore)
    sizes = array.shards or array.chunks
    sides = list(zip(box, sizes, array.shape, strict=True))
    whole = all(s.start % n == 0 and s.stop == min(s.start + n, end) for s, n, end in sides)
    if not (local and whole and array.config.write_empty_chunks and values.dtype == array.dtype):
        array[box] = values
        return
    corner = tuple(side.start // n for side, n in zip(box, sizes, strict=True))
    prototype = default_buffer_prototype()
    spec = array.metadata.get_chunk_spec(corner, array.config, prototype)
    path = store.root / array.path / array.metadata.encode_chunk_key(corner)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # another store may have the same file, by a hard link
    with path.open("wb") as file:
        for part in chain.parts(prototype.nd_buffer.from_numpy_array(values), spec):
            file.write(part.as_buffer_like())


def end_threads() -> None:
    """End the threads in which Zarr reads and writes; the next array that is used starts others."""
    sync.cleanup_resources()
