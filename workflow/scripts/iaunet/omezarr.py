"""Write and open our own OME-Zarr 0.5 stores: image pyramid, labels, provenance."""

import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from iaunet import chunks
from iaunet.errors import InputError
from iaunet.grid import Box, box_shape

# An absent chunk reads as zeros without a word, so all are written: then a lost one shows.
# It also skips zarr's slow comparison of every chunk with the fill value.
zarr.config.set({"array.write_empty_chunks": True})
zarr.config.set(chunks.SETTINGS)

VERSION = "0.5"
SMALLEST_LEVEL_PX = 256
INNER_PX = {2: (512, 512), 3: (16, 128, 128)}
SHARD_PX = {2: (1024, 1024), 3: (16, 512, 512)}
PIECE_BYTES = 4 << 20
SLAB_BYTES = 1 << 20
"""Of values of which a coarser level is made at a time: they and it stay in the processor."""
CLASS_RGB = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233)]
"""Colours of classes in viewers, which stay apart for colour-blind readers (Okabe and Ito)."""
INSTANCES, SEMANTIC = "instances", "semantic"
"""Names of the labels: every object has a number; every voxel has that of a class."""

READ_ONCE = 2**23
"""Bytes of a small array."""

Reduction = Callable[[np.ndarray, Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Meta:
    """What a store of ours says about its image.

    `levels` are the shapes of the pyramid, the full image first; `attrs` is what stands under
    the key ``iaunet``.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    pixel_um: tuple[float, ...] | None
    channel: str
    levels: tuple[tuple[int, ...], ...]
    attrs: dict[str, object]


class Whole(LocalStore):
    """A store of ours to read from: a chunk that is not there, or empty, is an error."""

    async def get(self, key, prototype, byte_range=None):
        """Return the bytes of a file of the store; chunks must have some."""
        found = await super().get(key, prototype, byte_range)
        if "/c/" in key and (found is None or not len(found)):
            raise ValueError(f"no data in {key}")
        return found


class Stored(zarr.Array):
    """An array of ours; reading what is damaged is an error that names it.

    A small one is read once: of what Zarr does for a part, that takes the least.
    """

    def __getitem__(self, selection):
        try:
            if not (self.read_only and self.nbytes <= READ_ONCE and _is_box(selection)):
                return super().__getitem__(selection)
            if "_whole" not in vars(self):
                vars(self)["_whole"] = super().__getitem__(...)
            return vars(self)["_whole"][selection].copy()
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise InputError(
                f"{self.store_path.store.root}: array '{self.path}' is damaged ({error}); run the "
                "step that writes the store again"
            ) from error


def _is_box(selection: object) -> bool:
    """Tell whether a selection has a slice, numbers, and nothing else: NumPy reads it as Zarr."""
    parts = selection if isinstance(selection, tuple) else (selection,)
    some = any(isinstance(part, slice) for part in parts)
    return some and all(isinstance(part, (slice, int, np.integer)) for part in parts)


def create_image(
    path: Path,
    shape: Sequence[int],
    axes: Sequence[str],
    dtype: np.dtype | type,
    pixel_um: Sequence[float] | None,
    name: str,
    attrs: Mapping[str, object],
) -> zarr.Group:
    """Create a store with the arrays of all levels, without pixels; return its group."""
    group = zarr.create_group(str(path), zarr_format=3, overwrite=False)
    codec = _image_codec(np.dtype(dtype))
    how = "mean of 2 x 2 (x 2) pixels"
    _fill_group(group, shape, axes, dtype, pixel_um, name, codec, how, {}, attrs)
    return group


def update_attrs(path: Path, attrs: Mapping[str, object]) -> None:
    """Add facts to those under the key ``iaunet``."""
    group = _open_group(path, "r+")
    group.attrs["iaunet"] = {**group.attrs.asdict().get("iaunet", {}), **attrs}


def write_display(path: Path, limits: Sequence[float], span: Sequence[float]) -> None:
    """Say how viewers show the image: grey, black and white at `limits`, of values in `span`."""
    group = _open_group(path, "r+")
    (start, end), (low, high) = map(float, limits), map(float, span)
    end = end if end > start else start + 1
    channel = {
        "label": str(group.attrs.asdict().get("iaunet", {}).get("channel", "0")),
        "color": "FFFFFF",
        "active": True,
        "window": {"min": min(low, start), "max": max(high, end), "start": start, "end": end},
    }
    omero = {"channels": [channel], "rdefs": {"model": "greyscale"}}
    group.attrs["ome"] = {**group.attrs["ome"], "omero": omero}


def level_factors(
    shape: Sequence[int], axes: Sequence[str], pixel_um: Sequence[float] | None
) -> list[tuple[int, ...]]:
    """Return how much coarser each level is along each axis, 1 for the image itself.

    y and x are halved until both are at most 256 px; z with them where its spacing at that
    level is not coarser than that of y.

    Examples
    --------
    >>> level_factors((10, 600, 300), "zyx", (1.0, 0.5, 0.5))
    [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    """
    spacing = list(pixel_um) if pixel_um else [1.0] * len(shape)
    factors = [(1,) * len(shape)]
    while True:
        now = factors[-1]
        lengths = [-(-n // factor) for n, factor in zip(shape, now, strict=True)]
        if max(lengths[-2:]) <= SMALLEST_LEVEL_PX:
            return factors
        sizes = dict(zip(axes, (s * f for s, f in zip(spacing, now, strict=True)), strict=True))
        halved = {"y", "x"}
        if "z" in sizes and lengths[0] > 1 and sizes["z"] <= sizes["y"] * (1 + 1e-6):
            halved.add("z")
        factors.append(
            tuple(f * (2 if axis in halved else 1) for f, axis in zip(now, axes, strict=True))
        )


def write_pyramid(group_path: Path) -> None:
    """Fill levels 1, 2, ... of the image from level 0 with means, in bounded memory."""
    _fill_levels(_open_group(group_path, "r+"), _reduction(None))


def write_label_pyramid(path: Path, name: str | None = INSTANCES) -> None:
    """Fill levels 1, 2, ... of labels from level 0 with every second voxel.

    In bounded memory. `name` is that of labels of an image; None: the store is the labels.
    """
    labels = Path(path) / "labels" / name if name else Path(path)
    _fill_levels(_open_group(labels, "r+"), _reduction("labels"))


def _reduction(name: str | None) -> Reduction:
    """Return what makes a level of the finer one, of labels or of the image."""
    if name:
        return strided
    from iaunet.halving import halved_mean  # with numba; who writes labels starts without

    return halved_mean


def strided(values: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Return every second value along each axis whose factor is 2."""
    return values[tuple(slice(None, None, factor) for factor in factors)]


class Levels:
    """All levels, written by boxes of level 0; each is made of the finer one while in memory.

    Attributes
    ----------
    fine : Zarr array, the finest of these levels
    coarse : Levels, the others, or None; of each the shards under a box are held in memory
    reduce : what makes a level of the finer one
    """

    def __init__(self, arrays: Sequence[zarr.Array], reduce: Reduction = strided) -> None:
        self.fine, self.reduce = arrays[0], reduce
        self.coarse = Levels(arrays[1:], reduce) if len(arrays) > 1 else None
        self._home: Box | None = None
        self._values = np.zeros(0, self.fine.dtype)

    def ordered(self, boxes: Iterable[Box]) -> list[Box]:
        """Return unions of shards in the order in which they are to be written."""
        return sorted(boxes, key=self._order)

    def write(self, box: Box, values: np.ndarray) -> None:
        """Write a box that is a union of whole shards.

        Boxes under the same shard of a level must lie under the same shards of that level.
        """
        write_box(self.fine, box, values)
        if self.coarse is None:
            return
        home = self._coarse_shards(box)
        if home != self._home:
            self._pass_on()
            self._home, self._values = home, np.zeros(box_shape(home), self.fine.dtype)
        factors = self._factors()
        place = tuple(
            slice(side.start // factor - start.start, -(-side.stop // factor) - start.start)
            for side, factor, start in zip(box, factors, home, strict=True)
        )
        target, step = self._values[place], 2 * max(1, SLAB_BYTES // values[:2].nbytes)
        for start in range(0, len(values), step):
            made = self.reduce(values[start : start + step], factors)
            first = start // factors[0]
            target[first : first + len(made)] = made

    def close(self) -> None:
        """Write what is still in memory."""
        if self.coarse is not None:
            self._pass_on()
            self.coarse.close()

    def _pass_on(self) -> None:
        if self._home is not None:
            self.coarse.write(self._home, self._values)
            self._home, self._values = None, np.zeros(0, self.fine.dtype)

    def _factors(self) -> tuple[int, ...]:
        return _factors(self.fine, self.coarse.fine)

    def _order(self, box: Box) -> list[list[int]]:
        """Return where a box lies at every level, the coarsest first."""
        above = [] if self.coarse is None else self.coarse._order(self._coarse_shards(box))
        return [*above, [side.start for side in box]]

    def _coarse_shards(self, box: Box) -> Box:
        """Return the union of the shards of the next level over a box."""
        coarse, found = self.coarse.fine, []
        for side, factor, size, n in zip(
            box, self._factors(), coarse.shards, coarse.shape, strict=True
        ):
            step = factor * size
            found.append(slice(side.start // step * size, min(-(-side.stop // step) * size, n)))
        return tuple(found)


def _every(values: np.ndarray, axis: int, start: int) -> np.ndarray:
    index = [slice(None)] * values.ndim
    index[axis] = slice(start, None, 2)
    return values[tuple(index)]


def open_level(path: Path, level: int = 0, mode: str = "r") -> zarr.Array:
    """Open one level of the image."""
    return _open_array(_open_group(path, mode), path, str(level))


def open_labels(path: Path, name: str = INSTANCES, level: int = 0, mode: str = "r") -> zarr.Array:
    """Open one level of labels."""
    return _open_array(_open_group(path, mode), path, f"labels/{name}/{level}")


def label_names(path: Path) -> list[str]:
    """Return the names of the labels of an image."""
    group = _open_group(path, "r")
    listed = group["labels"].attrs.asdict().get("ome", {}) if "labels" in group else {}
    return [str(name) for name in listed.get("labels", [])]


def labels_attrs(path: Path, name: str) -> dict[str, object]:
    """Return what stands under the key ``iaunet`` of labels."""
    group = _open_group(Path(path) / "labels" / name, "r")
    return dict(group.attrs.asdict().get("iaunet", {}))


def read_meta(path: Path) -> Meta:
    """Return the metadata of a store that `create_image` made."""
    group = _open_group(path, "r")
    try:
        multiscale = group.attrs["ome"]["multiscales"][0]
        attrs = dict(group.attrs["iaunet"])
        arrays = [group[dataset["path"]] for dataset in multiscale["datasets"]]
        scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
        has_unit = all("unit" in axis for axis in multiscale["axes"])
        axes = tuple(axis["name"] for axis in multiscale["axes"])
        return Meta(
            axes=axes,
            shape=tuple(arrays[0].shape),
            dtype=np.dtype(arrays[0].dtype),
            pixel_um=tuple(float(step) for step in scale) if has_unit else None,
            channel=str(attrs.get("channel", "0")),
            levels=tuple(tuple(array.shape) for array in arrays),
            attrs=attrs,
        )
    except Exception as error:  # hostile JSON fails in many places of zarr
        raise InputError(
            f"{path}: not an image store of tile.py or stitch.py, or damaged"
        ) from error


def levels(path: Path, name: str | None = INSTANCES) -> Levels:
    """Open all levels of labels of an image for writing; name None: those of the image itself."""
    group = _open_group(Path(path) / "labels" / name if name else path, "r+")
    arrays = [group[str(level)] for level in range(_n_levels(group))]
    return Levels(arrays, _reduction(name))


def add_labels(
    path: Path,
    name: str,
    dtype: np.dtype | type,
    attrs: Mapping[str, object] | None = None,
    names: Sequence[str] = (),
) -> zarr.Array:
    """Add empty labels with the levels of the image; return their level 0.

    `names` are those of the labels 1, 2, ..., where each is a class.
    """
    meta = read_meta(path)
    image = _open_group(path, "r+")
    labels = image.require_group("labels")
    there = [*labels.attrs.asdict().get("ome", {}).get("labels", []), name]
    group = labels.create_group(name)
    source: dict[str, object] = {"source": {"image": "../../"}}
    if names:
        source["properties"] = [
            {"label-value": number, "class": one} for number, one in enumerate(names, start=1)
        ]
        source["colors"] = [
            {"label-value": number, "rgba": [*CLASS_RGB[(number - 1) % len(CLASS_RGB)], 255]}
            for number in range(1, len(names) + 1)
        ]
    array = _fill_labels(group, meta.shape, meta.axes, dtype, meta.pixel_um, name, source, attrs)
    labels.attrs["ome"] = {"version": VERSION, "labels": there}
    return array


def create_labels(
    path: Path,
    shape: Sequence[int],
    axes: Sequence[str],
    dtype: np.dtype | type,
    pixel_um: Sequence[float] | None,
    attrs: Mapping[str, object],
) -> zarr.Array:
    """Create a store that holds labels and no image, empty; return its level 0."""
    group = zarr.create_group(str(path), zarr_format=3, overwrite=False)
    return _fill_labels(group, shape, axes, dtype, pixel_um, "labels", {}, attrs)


def create_part(path: Path, name: str, shape: Sequence[int], dtype: np.dtype | type) -> zarr.Array:
    """Create level 0 of labels in a store of which one job writes some shards."""
    group = zarr.create_group(str(Path(path) / name), zarr_format=3, overwrite=False)
    axes = "zyx"[-len(shape) :]
    _create_levels(group, shape, axes, np.dtype(dtype), [(1,) * len(shape)], ZstdCodec(level=1))
    return group["0"]


def link_part(part: Path, store: Path, name: str) -> None:
    """Take over the shards of a part into the labels of an image; files are linked or copied.

    Raises
    ------
    InputError
        The part was made for an array of another shape or type.
    """
    level = Path(store) / "labels" / name / "0"
    source = Path(part) / name / "0"
    found, wanted = source / "zarr.json", level / "zarr.json"
    if not found.is_file() or found.read_bytes() != wanted.read_bytes():
        raise InputError(f"{part}: not a part of these labels; run paint.py again")
    for shard in sorted((source / "c").rglob("*")):
        if shard.is_file():
            target = level / shard.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(str(shard), str(target))


def n_missing_shards(store: Path, name: str) -> int:
    """Return how many shards of level 0 of labels have no file."""
    level = Path(store) / "labels" / name / "0"
    array = open_labels(store, name)
    counts = (-(-n // size) for n, size in zip(array.shape, array.shards, strict=True))
    return math.prod(counts) - sum(path.is_file() for path in (level / "c").rglob("*"))


def _fill_labels(
    group: zarr.Group,
    shape: Sequence[int],
    axes: Sequence[str],
    dtype: np.dtype | type,
    pixel_um: Sequence[float] | None,
    name: str,
    source: Mapping[str, object],
    attrs: Mapping[str, object] | None,
) -> zarr.Array:
    label = {"image-label": {"version": VERSION, **source}}
    codec = ZstdCodec(level=1)
    how = "every second voxel"
    _fill_group(group, shape, axes, dtype, pixel_um, name, codec, how, label, attrs)
    return group["0"]


def _fill_group(
    group: zarr.Group,
    shape: Sequence[int],
    axes: Sequence[str],
    dtype: np.dtype | type,
    pixel_um: Sequence[float] | None,
    name: str,
    codec: BloscCodec | ZstdCodec,
    how: str,
    more: Mapping[str, object],
    attrs: Mapping[str, object] | None,
) -> None:
    """Give a group the arrays of all levels, empty, and its metadata."""
    factors = level_factors(shape, axes, pixel_um)
    _create_levels(group, shape, axes, np.dtype(dtype), factors, codec)
    multiscales = [_multiscale(name, axes, pixel_um, factors, how)]
    group.attrs["ome"] = {"version": VERSION, "multiscales": multiscales, **more}
    if attrs is not None:
        group.attrs["iaunet"] = dict(attrs)


def link_image(source_store: Path, target_store: Path) -> None:
    """Make a store with the same image and no labels; files are hard-linked, or else copied."""
    source_store, target_store = Path(source_store), Path(target_store)
    n_levels = len(read_meta(source_store).levels)
    target_store.mkdir(parents=True)
    shutil.copyfile(source_store / "zarr.json", target_store / "zarr.json")
    for level in range(n_levels):
        # copy_function links; attributes files may be edited later, so zarr.json is copied.
        shutil.copytree(
            source_store / str(level), target_store / str(level), copy_function=_link_or_copy
        )


def _link_or_copy(source: str, target: str) -> None:
    try:
        if Path(source).name == "zarr.json":
            raise OSError
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def shard_boxes(array: zarr.Array) -> Iterator[Box]:
    """Yield the boxes of an array's shards, cut at the array, in raster order."""
    yield from _boxes(array.shape, array.shards or array.chunks)


def write_box(array: zarr.Array, box: Box, values: np.ndarray) -> None:
    """Write a box that is a union of whole shards, shard by shard: zarr encodes one at a time."""
    size = array.shards or array.chunks
    for part in _boxes(box_shape(box), size):
        place = tuple(
            slice(side.start + inner.start, side.start + inner.stop)
            for side, inner in zip(box, part, strict=True)
        )
        chunks.write(array, place, values[part])


def _create_levels(
    group: zarr.Group,
    shape: Sequence[int],
    axes: Sequence[str],
    dtype: np.dtype,
    factors: Sequence[Sequence[int]],
    codec: BloscCodec | ZstdCodec,
) -> None:
    ndim = len(shape)
    for level, level_factor in enumerate(factors):
        lengths = tuple(-(-n // factor) for n, factor in zip(shape, level_factor, strict=True))
        inner = tuple(min(n, size) for n, size in zip(lengths, INNER_PX[ndim], strict=True))
        shards = tuple(
            min(-(-n // size), shard // full) * size
            for n, size, shard, full in zip(
                lengths, inner, SHARD_PX[ndim], INNER_PX[ndim], strict=True
            )
        )
        group.create_array(
            str(level),
            shape=lengths,
            dtype=dtype,
            chunks=inner,
            shards=shards,
            compressors=[codec, Crc32cCodec()],  # a changed byte is an error, see `Stored`
            fill_value=0,
            dimension_names=list(axes),
        )


def _image_codec(dtype: np.dtype) -> BloscCodec:
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=dtype.itemsize)


def _multiscale(
    name: str,
    axes: Sequence[str],
    pixel_um: Sequence[float] | None,
    factors: Sequence[Sequence[int]],
    method: str,
) -> dict[str, object]:
    unit = {"unit": "micrometer"} if pixel_um else {}
    spacing = pixel_um or (1.0,) * len(axes)
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in axes],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {
                        "type": "scale",
                        "scale": [
                            float(size) * factor
                            for size, factor in zip(spacing, level_factor, strict=True)
                        ],
                    }
                ],
            }
            for level, level_factor in enumerate(factors)
        ],
        "type": method,
    }


def _factors(fine: zarr.Array, coarse: zarr.Array) -> tuple[int, ...]:
    return tuple(1 if a == b else 2 for a, b in zip(fine.shape, coarse.shape, strict=True))


def _n_levels(group: zarr.Group) -> int:
    return len(group.attrs["ome"]["multiscales"][0]["datasets"])


def _fill_levels(group: zarr.Group, reduce: Reduction) -> None:
    for level in range(1, _n_levels(group)):
        fine, coarse = group[str(level - 1)], group[str(level)]
        factors = _factors(fine, coarse)
        for box in shard_boxes(coarse):
            coarse[box] = _reduced(fine, box, factors, reduce)


def _reduced(fine: zarr.Array, box: Box, factors: Sequence[int], reduce: Reduction) -> np.ndarray:
    """Return one shard of the coarser level; the finer one is read in pieces of some MB."""
    out = np.empty(box_shape(box), fine.dtype)
    piece = _piece(out.shape, out.dtype.itemsize * math.prod(factors))
    for part in _boxes(out.shape, piece):
        source = tuple(
            slice((a.start + b.start) * f, min((a.start + b.stop) * f, n))
            for a, b, f, n in zip(box, part, factors, fine.shape, strict=True)
        )
        out[part] = reduce(fine[source], factors)
    return out


def _piece(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    piece = list(shape)
    while math.prod(piece) * itemsize > PIECE_BYTES and max(piece) > 64:
        piece[piece.index(max(piece))] = -(-max(piece) // 2 // 64) * 64
    return tuple(piece)


def _boxes(shape: Sequence[int], size: Sequence[int]) -> Iterator[Box]:
    starts = [range(0, n, step) for n, step in zip(shape, size, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + step, n))
            for start, step, n in zip(corner, size, shape, strict=True)
        )


def _open_group(path: Path, mode: str) -> zarr.Group:
    if not (Path(path) / "zarr.json").is_file():
        raise InputError(f"{path}: no OME-Zarr store of tile.py or stitch.py there")
    try:
        store = Whole(str(path), read_only=True) if mode == "r" else str(path)
        return zarr.open_group(store, mode=mode)
    except Exception as error:
        raise InputError(f"{path}: damaged store ({error}); make it again") from error


def _open_array(group: zarr.Group, path: Path, name: str) -> zarr.Array:
    try:
        found = group[name]
        if not isinstance(found, zarr.Array):
            raise TypeError("a group")
        return Stored(found.async_array)
    except Exception as error:
        raise InputError(
            f"{path}: has no array '{name}' ({error}); make the store again"
        ) from error
