"""Write and read what a batch of tiles computed: network outputs, or labels.

One Zarr v3 group per batch. Its arrays have the shape of the whole image, but only the
shards of the batch's tiles exist: a shard is the core of one tile, so no two jobs and no two
threads write the same file. Zarr reads absent shards as zeros without a word; the readers here
raise instead.
"""

import itertools
import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from iaunet import chunks, fixedpoint, grid, tiling
from iaunet.errors import InputError

zarr.config.set(chunks.SETTINGS)

VERSION = 1
LABELS, CLASSES = "labels", "sem"
INNER_PX = {2: (512, 512), 3: (32, 128, 128)}
LABELS_PX = {2: (1024, 1024), 3: (16, 256, 256)}
"""Wanted size of the parts of a shard that are compressed and read one by one; each costs zarr
about a millisecond. Of labels, no step reads a margin around a tile."""

ZSTD = ZstdCodec(level=1, checksum=True)
LZ4 = {"fg": "noshuffle", "seed": "noshuffle", "off": "shuffle", "id": "noshuffle"}
"""Outputs that are packed by lz4, and what is done with their bytes first; the others by zstd.

Measured on outputs of drawn nuclei in 3D: zstd packs all of them to 3.2 bytes per voxel, lz4 to 4.3
in half of the time, and is read in half of it. All but ``lsig`` by lz4, which gains least of it,
makes 3.8 bytes; with shuffled bytes ``seed`` would be larger.
"""


def _codecs(name: str, dtype: np.dtype) -> list[BloscCodec | Crc32cCodec | ZstdCodec]:
    """Return what packs an array; a changed byte is an error when it is read."""
    if name not in LZ4:
        return [ZSTD]
    return [
        BloscCodec(cname="lz4", clevel=5, shuffle=LZ4[name], typesize=dtype.itemsize),
        Crc32cCodec(),
    ]


class Writer:
    """Writes the arrays of one batch tile by tile; the threads of a job may share it."""

    def __init__(
        self,
        path: Path,
        shape: Sequence[int],
        core_px: Sequence[int],
        arrays: Mapping[str, tuple[np.dtype, int, Sequence[int]]],
        inner_px: Sequence[int],
    ) -> None:
        """Create the group.

        Parameters
        ----------
        arrays : name -> dtype, length of the leading axis (0: there is none), px per cell.
        inner_px : wanted size of the parts of a shard.
        """
        self._core_px = tuple(core_px)
        self._inner_px = inner_px
        self._strides = {name: tuple(stride) for name, (_, _, stride) in arrays.items()}
        self._lock = threading.Lock()
        self._written: set[int] = set()
        ndim = len(shape)
        self._off = np.zeros((ndim, 256), dtype=np.int32)
        self._lsig = np.zeros((ndim, 256), dtype=np.int32)
        self._group = zarr.create_group(path, zarr_format=3)
        self._facts = {
            "version": VERSION,
            "shape": list(shape),
            "core": list(core_px),
            "strides": {name: list(stride) for name, stride in self._strides.items()},
        }
        self._arrays = {name: self._create(name, shape, *spec) for name, spec in arrays.items()}

    def _create(
        self, name: str, shape: Sequence[int], dtype: np.dtype, leading: int, stride: Sequence[int]
    ) -> zarr.Array:
        if any(core % step for core, step in zip(self._core_px, stride, strict=True)):
            raise ValueError(
                f"core {self._core_px} is no multiple of the stride {stride} of {name}"
            )
        core = [core // step for core, step in zip(self._core_px, stride, strict=True)]
        inner = [
            _part(size, max(1, wanted // step))
            for size, wanted, step in zip(core, self._inner_px, stride, strict=True)
        ]
        lead = (leading,) if leading else ()
        return self._group.create_array(
            name,
            shape=(*lead, *_cells(shape, stride)),
            dtype=dtype,
            shards=(*lead, *core),
            chunks=(*lead, *inner),
            compressors=_codecs(name, np.dtype(dtype)),
            fill_value=0,
            config={"write_empty_chunks": True},
        )

    def write(self, tile: grid.Tile, arrays: Mapping[str, np.ndarray]) -> None:
        """Write all arrays of one tile's core; id in cells, cut at the image like the others."""
        if set(arrays) != set(self._arrays):
            raise ValueError(f"found arrays {sorted(arrays)}, needs {sorted(self._arrays)}")
        for name, values in arrays.items():
            array = self._arrays[name]
            box = grid.cells_of(tile.core, self._strides[name])
            lead = array.shape[: array.ndim - len(box)]
            wanted = (*lead, *grid.box_shape(box))
            if values.dtype != array.dtype or values.shape != wanted:
                raise ValueError(
                    f"{name}: found {values.dtype} {values.shape}, needs {array.dtype} {wanted}"
                )
            chunks.write(array, (*[slice(0, n) for n in lead], *box), values)
        with self._lock:
            self._written.add(tile.index)
            if "off" in arrays:
                _raise_maxima(self._off, arrays["fg"], arrays["off"])
                _raise_maxima(self._lsig, arrays["fg"], arrays["lsig"])

    def write_empty(self, tile: grid.Tile) -> None:
        """Write zeros for a tile that failed."""
        empty = {}
        for name, array in self._arrays.items():
            shape = grid.box_shape(grid.cells_of(tile.core, self._strides[name]))
            empty[name] = np.zeros((*array.shape[: array.ndim - len(shape)], *shape), array.dtype)
        self.write(tile, empty)

    def close(self, **more: object) -> None:
        """Write which tiles are there, and the statistics; a store without them is not read."""
        self._group.update_attributes(
            {
                "iaunet": {
                    **self._facts,
                    "tiles": sorted(self._written),
                    "stats": {"off": _from_above(self._off), "lsig": _from_above(self._lsig)},
                    **more,
                }
            }
        )


def create(
    path: Path,
    shape: Sequence[int],
    core_px: Sequence[int],
    id_stride: Sequence[int],
    n_channels: int = 16,
    emb_dim: int = 0,
    n_classes: int = 0,
) -> Writer:
    """Create a store of network outputs: fg, seed, off, lsig, id, emb and sem, see `fixedpoint`.

    Parameters
    ----------
    path : folder that does not exist; give the name that `cli.write_whole` yields.
    shape : of the whole image.
    core_px : of the tiles; multiples of `id_stride`.
    id_stride : px per cell of ``id``.
    n_channels : length of the identity vectors.
    emb_dim : length of the embeddings; 0: there are none.
    n_classes : how many classes the network tells; 0: no array of classes.
    """
    ndim = len(shape)
    leading = {"fg": 0, "seed": 0, "off": ndim, "lsig": ndim, "id": n_channels}
    if emb_dim:
        leading["emb"] = emb_dim
    if n_classes:
        leading[CLASSES] = 0
    return Writer(
        path,
        shape,
        core_px,
        {
            name: (fixedpoint.DTYPE[name], n, id_stride if name == "id" else (1,) * ndim)
            for name, n in leading.items()
        },
        INNER_PX[ndim],
    )


def create_labels(
    path: Path, shape: Sequence[int], core_px: Sequence[int], *, classes: bool = False
) -> Writer:
    """Create a store of labels: an array ``labels``, uint64, 0 is background; and of classes."""
    stride = (1,) * len(shape)
    arrays = {LABELS: (np.dtype("u8"), 0, stride)}
    if classes:
        arrays[CLASSES] = (fixedpoint.DTYPE[CLASSES], 0, stride)
    return Writer(path, shape, core_px, arrays, LABELS_PX[len(shape)])


class Reader:
    """Reads boxes across the stores of all batches of an image as if they were one.

    Only stores that a box touches are opened.
    """

    def __init__(self, paths: Sequence[Path], tiles: Mapping[str, object]) -> None:
        """Take the stores of all batches, in order.

        Parameters
        ----------
        tiles : what tile.py wrote: shape, grid_shape, core and batches.
        """
        self.shape = tiling.grid_shape(tiles)
        self.core_px = tuple(tiles["core"])
        self._runs = [tuple(run) for run in tiles["batches"]]
        self._paths = [Path(path) for path in paths]
        if len(self._paths) != len(self._runs):
            raise InputError(
                f"found {len(self._paths)} stores, needs {len(self._runs)}, one per batch"
            )
        self._known: dict[int, dict] = {}
        self._arrays: dict[tuple[int, str], zarr.Array] = {}
        self._seen: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def read(self, name: str, box: grid.Box) -> np.ndarray:
        """Return a box of one array, in cells for ``id``; leading axes are whole.

        Raises
        ------
        InputError
            A store or a tile that should be in it is missing, damaged, or of another tiling.
        """
        stride = self.stride(name)
        core = [size // step for size, step in zip(self.core_px, stride, strict=True)]
        shape = _cells(self.shape, stride)
        indices = grid.tiles_meeting(shape, core, box)
        owners = [self._batch(index) for index in indices]
        for index, batch in zip(indices, owners, strict=True):
            self._check_tile(batch, name, index)
        if len(set(owners)) == 1:
            return self._part(owners[0], name, box)
        array = self._array(owners[0], name)
        lead = array.shape[: array.ndim - len(box)]
        result = np.empty((*lead, *grid.box_shape(box)), dtype=array.dtype)
        for index, batch in zip(indices, owners, strict=True):
            part = grid.intersection(grid.tile(shape, core, index).core, box)
            result[(..., *grid.shift(part, grid.origin(box)))] = self._part(batch, name, part)
        return result

    def largest(self, fg_least: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the largest offset (1/16 px) and ``lsig`` per axis where ``fg`` is `fg_least`.

        Or more; of the whole image, so all stores are opened.
        """
        stats = [self.facts(batch)["stats"] for batch in range(len(self._runs))]
        found = []
        for name in ("off", "lsig"):
            levels = np.array([one[name] for one in stats])
            found.append(tuple(int(n) for n in levels[:, :, fg_least:].max(axis=(0, 2))))
        return found[0], found[1]

    def stride(self, name: str) -> tuple[int, ...]:
        """Return px per cell of an array, as the first batch that has a tile says."""
        batch = next((k for k, (start, end) in enumerate(self._runs) if start < end), 0)
        strides = self.facts(batch)["strides"]
        if name not in strides:
            raise InputError(f"{self._paths[batch]}: no array '{name}'; found {sorted(strides)}")
        return tuple(strides[name])

    def failed(self) -> list[dict]:
        """Return the tiles of all batches that failed, as their writers noted; see `quarantine`."""
        everything = [self.facts(batch).get("failed_tiles", []) for batch in range(len(self._runs))]
        return [one for some in everything for one in some]

    def has(self, name: str) -> bool:
        """Tell whether the stores have an array, as the first one says."""
        return name in self.facts(0)["strides"]

    def facts(self, batch: int) -> dict:
        """Return what the writer of a batch noted, also what it was given when closed."""
        with self._lock:
            if batch not in self._known:
                self._known[batch] = self._checked(batch)
            return self._known[batch]

    def _batch(self, tile_index: int) -> int:
        return next(k for k, (start, end) in enumerate(self._runs) if start <= tile_index < end)

    def _checked(self, batch: int) -> dict:
        """Check that a store is finished and belongs to this tiling; return what it says.

        Its metadata are read as the JSON they are: a job does this for the stores of all
        batches, and opening a group takes ten times as long.
        """
        path = self._paths[batch]
        try:
            facts = json.loads((path / "zarr.json").read_text())["attributes"]["iaunet"]
            tiles, shape, core = facts["tiles"], facts["shape"], facts["core"]
            version, _, _ = facts["version"], facts["strides"], facts["stats"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a finished store of batch {batch}; run its step again ({error!r})"
            ) from error
        wanted = list(range(*self._runs[batch]))
        for what, found, needed in (
            ("version", version, VERSION),
            ("image shape", tuple(shape), self.shape),
            ("core", tuple(core), self.core_px),
            ("tiles", tiles, wanted),
        ):
            if found != needed:
                raise InputError(
                    f"{path}: {what} {_short(found)}, needs {_short(needed)}; it is of another "
                    f"tiling or version: run the step of batch {batch} again"
                )
        return facts

    def _array(self, batch: int, name: str) -> zarr.Array:
        with self._lock:
            if (batch, name) not in self._arrays:
                self._arrays[batch, name] = self._opened(batch, name)
            return self._arrays[batch, name]

    def _opened(self, batch: int, name: str) -> zarr.Array:
        path = self._paths[batch] / name
        try:
            return zarr.open_array(path, mode="r", zarr_format=3)
        except (KeyError, OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: not a readable array; run the step of batch {batch} again ({error!r})"
            ) from error

    def _check_tile(self, batch: int, name: str, index: int) -> None:
        """Raise when the shard of a tile is absent or empty: it would be read as zeros."""
        if (name, index) in self._seen:
            return
        array = self._array(batch, name)
        place = np.unravel_index(index, grid.grid_shape(self.shape, self.core_px))
        lead = ["0"] * (array.ndim - len(place))
        shard = self._paths[batch].joinpath(name, "c", *lead, *(str(int(k)) for k in place))
        if not shard.is_file() or shard.stat().st_size == 0:
            raise InputError(
                f"{self._paths[batch]}: array '{name}' has no data for tile {index}; the store is "
                f"damaged, run the step of batch {batch} again"
            )
        self._seen.add((name, index))

    def _part(self, batch: int, name: str, box: grid.Box) -> np.ndarray:
        array = self._array(batch, name)
        try:
            return array[(..., *box)]
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(
                f"{self._paths[batch]}: array '{name}' is damaged near {_short(box)} ({error}); "
                f"run the step of batch {batch} again"
            ) from error


def _cells(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-length // step) for length, step in zip(shape, stride, strict=True))


def _part(length: int, wanted: int) -> int:
    """Return the divisor of `length` that is nearest to `wanted` on a scale of ratios.

    Examples
    --------
    >>> _part(1024, 256), _part(96, 64), _part(32, 256), _part(268, 256)
    (256, 48, 32, 268)
    """
    pairs = ((d, length // d) for d in range(1, math.isqrt(length) + 1) if length % d == 0)
    divisors = sorted(itertools.chain.from_iterable(pairs))
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))


def _raise_maxima(maxima: np.ndarray, fg: np.ndarray, values: np.ndarray) -> None:
    """Raise ``maxima[axis, level]`` to the largest value per axis where ``fg`` is `level`.

    Values that are no larger than one where ``fg`` is highest are left out: they change no maximum
    over a level and all above it, and nearly all values are such.
    """
    highest = fg == maxima.shape[1] - 1
    for top, line in zip(maxima, values, strict=True):
        size = np.abs(line)
        if int(size.max(initial=0)) <= top[-1]:
            continue
        top[-1] = max(top[-1], (size * highest).max())
        far = np.flatnonzero(size > int(top[-1]))
        np.maximum.at(top, fg.ravel()[far], size.ravel()[far])


def _from_above(maxima: np.ndarray) -> list[list[int]]:
    """Return the largest value per axis where ``fg`` is a level or more."""
    return np.maximum.accumulate(maxima[:, ::-1], axis=1)[:, ::-1].tolist()


def _short(value: object) -> str:
    if isinstance(value, list) and value == list(range(value[0], value[-1] + 1) if value else ()):
        return f"{value[0]}..{value[-1]}" if value else "none"
    text = json.dumps(value, default=str)
    return text if len(text) < 80 else text[:77] + "..."
