"""Read boxes of sharded Zarr v3 arrays whose parts are compressed with Zstandard.

The steps after the network read its outputs again and again, each tile with a margin; zarr takes
two to four times as long for it. The layout is that of the specification: the parts of a shard one
after the other, then an index of 64-bit little-endian (begin, length) and its CRC-32C.
"""

import os
import threading
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
import zarr
from numcodecs import zstd

from iaunet import grid

ABSENT = 2**64 - 1


class Shards:
    """One array, read with checks of index and parts; threads may share it.

    Parameters
    ----------
    path : of the array.
    array : the same, as zarr opened it; leading axes are not cut into parts.

    Raises
    ------
    ValueError
        The array is not sharded, or compressed in another way.
    """

    def __init__(self, path: Path, array: zarr.Array) -> None:
        names = [codec.to_dict()["name"] for codec in array.compressors]
        if array.shards is None or names != ["zstd"] or array.dtype.byteorder == ">":
            raise ValueError(f"{path}: shards {array.shards}, compression {names}")
        self._path, self.shape, self.dtype = path, array.shape, array.dtype
        self._shard, self._part = array.shards, array.chunks
        self._parts = tuple(a // b for a, b in zip(self._shard, self._part, strict=True))
        self._indices: dict[tuple[int, ...], np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, box: grid.Box) -> np.ndarray:
        """Return a box of the last axes, inside the array; leading axes are whole.

        Raises
        ------
        OSError, ValueError, RuntimeError
            A shard is missing or damaged.
        """
        lead = len(self.shape) - len(box)
        box = (*(slice(0, n) for n in self.shape[:lead]), *box)
        result = np.empty(grid.box_shape(box), self.dtype)
        part = np.empty(self._part, self.dtype)
        for at in grid.positions_meeting(self._shard, box):
            name = self._path.joinpath("c", *map(str, at))
            origin = tuple(k * n for k, n in zip(at, self._shard, strict=True))
            shard = tuple(slice(o, o + n) for o, n in zip(origin, self._shard, strict=True))
            wanted = grid.shift(grid.intersection(shard, box), origin)
            with name.open("rb") as file:
                index = self._index(at, file)
                for k in grid.positions_meeting(self._part, wanted):
                    begin, length = (int(n) for n in index[k])
                    if begin == ABSENT:
                        raise ValueError(f"part {k} is absent")
                    file.seek(begin)
                    zstd.decompress(file.read(length), part)
                    first = tuple(o + i * n for o, i, n in zip(origin, k, self._part, strict=True))
                    there = tuple(slice(f, f + n) for f, n in zip(first, self._part, strict=True))
                    both = grid.intersection(there, box)
                    result[grid.shift(both, grid.origin(box))] = part[grid.shift(both, first)]
        return result

    def _index(self, at: tuple[int, ...], file: BinaryIO) -> np.ndarray:
        """Return begin and length of every part of a shard."""
        with self._lock:
            if at not in self._indices:
                length = 16 * int(np.prod(self._parts))
                file.seek(max(0, file.seek(0, os.SEEK_END) - length - 4))
                content, checksum = file.read(length), file.read()
                if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
                    raise ValueError("the checksum of its index is wrong")
                self._indices[at] = np.frombuffer(content, "<u8").reshape(*self._parts, 2)
            return self._indices[at]
