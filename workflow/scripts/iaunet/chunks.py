"""How Zarr packs and unpacks the chunks of all arrays: one after the other, where it is called.

Zarr itself makes a task for every chunk and codec, and hands each to another thread and back; of
our shards this took more CPU time than the codecs did.
"""

from collections.abc import Iterable

from zarr.abc.store import ByteGetter, ByteSetter
from zarr.core import sync
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.indexing import SelectorTuple
from zarr.registry import register_pipeline

# Where its bytes are, shape and type, the part of the chunk, that of the array, is it all of it.
Chunk = tuple[ByteGetter | ByteSetter, ArraySpec, SelectorTuple, SelectorTuple, bool]


class OneByOne(BatchedCodecPipeline):
    """Zarr's chain of codecs; those that can, work in the thread that calls them."""

    async def decode_batch(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        """Return what chunks unpack to."""
        if not self._is_direct():
            return await super().decode_batch(chunk_bytes_and_specs)
        return [self._unpacked(packed, spec) for packed, spec in chunk_bytes_and_specs]

    async def encode_batch(
        self, chunk_arrays_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Return chunks, packed."""
        if not self._is_direct():
            return await super().encode_batch(chunk_arrays_and_specs)
        return [self._packed(values, spec) for values, spec in chunk_arrays_and_specs]

    async def read(
        self, batch_info: Iterable[Chunk], out: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> None:
        """Unpack chunks into `out`."""
        for chunk in batch_info:
            await self.read_batch([chunk], out, drop_axes)

    async def write(
        self, batch_info: Iterable[Chunk], value: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> None:
        """Write chunks; what a whole one held before is not read."""
        for chunk in batch_info:
            target, spec, _, place, whole = chunk
            part = value[place] if whole and value.shape and not drop_axes else None
            if part is None or part.shape != spec.shape or not spec.config.write_empty_chunks:
                await self.write_batch([chunk], value, drop_axes)
                continue
            (packed,) = await self.encode_batch([(part, spec)])
            await target.set(packed)

    def _is_direct(self) -> bool:
        """Tell whether all codecs can work in this thread; shards hold chunks and cannot."""
        # What zarr.abc.codec.SupportsSyncCodec asks, which takes 0.1 ms.
        return not self.array_array_codecs and all(hasattr(c, "_encode_sync") for c in self)

    def _unpacked(self, chunk: Buffer | NDBuffer | None, spec: ArraySpec) -> NDBuffer | None:
        for codec in (*self.bytes_bytes_codecs[::-1], self.array_bytes_codec):
            chunk = None if chunk is None else codec._decode_sync(chunk, spec)
        return chunk

    def _packed(self, chunk: Buffer | NDBuffer | None, spec: ArraySpec) -> Buffer | None:
        for codec in (self.array_bytes_codec, *self.bytes_bytes_codecs):
            chunk = None if chunk is None else codec._encode_sync(chunk, spec)
        return chunk


register_pipeline(OneByOne)
# What goes through threads of zarr's own takes twice the CPU time with many of them.
SETTINGS = {"codec_pipeline.path": f"{__name__}.{OneByOne.__name__}", "threading.max_workers": 1}
"""Of Zarr, to use it; whoever opens arrays sets them."""
ZARRS_OWN = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
"""That without it, to compare with."""


def end_threads() -> None:
    """End the threads in which Zarr reads and writes; the next array that is used starts others."""
    sync.cleanup_resources()
