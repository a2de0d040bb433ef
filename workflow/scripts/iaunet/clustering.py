"""Network outputs in fixed point -> instances, the same in every window that sees them.

Mode "local" (route A of the method): seeds are strict local maxima, each seed says where its
centre and how wide its object is, voxels point at centres, and a voxel belongs to the kept
seed whose Gaussian it fits best. Mode "meanshift": seeds are the densest places of the space
of votes and embeddings, see `meanshift`; an object may be in several pieces. All decisions are
made on integers, so neither the window, the order of voxels nor the machine can change one of
them.

Units: centres and offsets are in 1/16 px; squared distances over twice the squared
bandwidth ("costs", minus the logarithm of the Gaussian) are in 1/2**40. An instance is
named by its ``gid``: the C-order index, in the whole image, of its seed voxel.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from iaunet import fixedpoint, grid, joining, kernels, meanshift
from iaunet.errors import InputError
from iaunet.settings import Settings

UNIT = fixedpoint.SCALE["off"]
COST_BITS = 40
WEIGHT = np.rint(2.0**COST_BITS / (2 * UNIT**2 * fixedpoint.SIGMA**2)).astype(np.int64)
"""Cost of a distance of 1/16 px for every value of ``lsig``; falls with the bandwidth."""

PHI_ONE = 65535
PHI_SHIFT = COST_BITS - 12
PHI = np.rint(PHI_ONE * np.exp(-(np.arange(12 << 12) + 0.5) / 4096)).astype(np.int64)
"""exp(-cost) in 1/65535 for costs in steps of 1/4096; beyond the table it is 0."""

N_CHANNELS = 16
ID_ONE = fixedpoint.SCALE["id"] ** 2

Read = Callable[[str, grid.Box], np.ndarray]
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Bounds:
    """Largest offset (1/16 px) and largest ``lsig`` per axis of all object voxels of an image.

    They decide how far a window must look; they must hold for the whole image.
    """

    off: tuple[int, ...]
    lsig: tuple[int, ...]


@dataclass(frozen=True)
class Reach:
    """How far, in px per axis, a window must look; see `reach`."""

    extent: tuple[int, ...]
    seeds: tuple[int, ...]
    maxima: tuple[int, ...]


def reach(settings: Settings, bounds: Bounds) -> Reach:
    """Return how far a window must look so that its core is labelled as in the whole image.

    Per axis, in 1/16 px, with m the largest offset, R the largest distance at which a seed
    accepts a voxel (R**2 * WEIGHT <= -ln phi) and N the largest distance at which a seed
    suppresses another (N**2 * WEIGHT < -ln suppress), both for the largest bandwidth:

    * a voxel p of object k has ``|x_p + o_p - c_k| <= R``, hence ``|x_p - c_k| <= R + m``;
      the same holds for its seed voxel. An object is therefore at most ``2 (R + m)`` long.
      All objects whose bounding box meets the core lie within ``extent = 2 (R + m)`` of it;
      only these can label a core voxel, be it directly or as a filled hole. An object that
      competes with such an object k for a hole is nested in k or around it, so its box lies
      in the box of k or meets the core, too: it is also seen whole.
    * a seed that accepts p has its centre within ``m + R`` of x_p; a seed that suppresses it
      has its own within N of that, and lies within m of its centre. All these are found in
      core + extent + ``seeds = 2 m + R + N``.
    * whether a voxel is a seed needs the seed map in a window, and smoothing one more voxel
      per pass: ``maxima = seed_window + smooth``.

    For mode meanshift see `meanshift.reach`; there, ``maxima = smooth``.
    """
    if settings.mode == "meanshift":
        whole, made = meanshift.reach(settings.kernel, _offsets_compared(settings, bounds))
        return Reach(whole, made, (settings.smooth,) * len(whole))
    extent, seeds, maxima = [], [], []
    for off, lsig, window in zip(bounds.off, bounds.lsig, settings.seed_window, strict=True):
        accept = math.isqrt(_cost(settings.phi) // int(WEIGHT[lsig]))
        suppress = math.isqrt(max(_cost(settings.suppress) - 1, 0) // int(WEIGHT[lsig]))
        extent.append(2 * (accept + off) // UNIT)
        seeds.append((2 * off + accept + suppress) // UNIT)
        maxima.append(window + settings.smooth)
    return Reach(tuple(extent), tuple(seeds), tuple(maxima))


def _offsets_compared(settings: Settings, bounds: Bounds) -> tuple[int, ...]:
    """Return the largest offset per axis that the mode looks at, 1/16 px."""
    unused = settings.mode == "meanshift" and settings.vectors == "conv"
    return (0,) * len(bounds.off) if unused else bounds.off


def _cost(phi: float) -> int:
    """Return the cost at which a Gaussian has the value `phi`."""
    return round(-math.log(phi) * 2**COST_BITS)


class Labelled(NamedTuple):
    """The core of a tile, labelled; see `label_window`."""

    labels: np.ndarray
    table: Columns
    sightings: Columns
    contacts: Columns
    outlines: np.ndarray


def label_array(
    outputs: Mapping[str, np.ndarray],
    settings: Settings,
    id_stride: Sequence[int] | None,
    joiner: joining.Joiner | None = None,
) -> np.ndarray:
    """Label a whole image in memory.

    Parameters
    ----------
    outputs : fg, seed, off, lsig and id as `fixedpoint` describes them.
    id_stride : px per cell of ``id``, per axis; None when the network has no identity branch.
    joiner : which fragments are one object; needed where the settings join.

    Returns
    -------
    uint64 array
        0 is background, other values are gid + 1.
    """
    found = label_whole(outputs, settings, id_stride)
    if not settings.join:
        return found.labels
    joined = joining.join(
        found.table,
        found.contacts,
        joiner,
        least=settings.join,
        min_size=settings.min_size,
        ndim=len(id_stride or outputs["fg"].shape),
    )
    return joining.renamed(found.labels, found.table["gid"], joined.gid)


def label_whole(
    outputs: Mapping[str, np.ndarray], settings: Settings, id_stride: Sequence[int] | None
) -> Labelled:
    """Return what `label_window` does of a whole image in memory."""
    shape = outputs["fg"].shape
    return label_window(
        lambda name, box: outputs[name][(..., *box)],
        tuple(slice(0, length) for length in shape),
        shape,
        settings,
        largest(outputs, settings),
        id_stride,
    )


def largest(outputs: Mapping[str, np.ndarray], settings: Settings) -> Bounds:
    """Return the bounds of an image whose outputs are in memory."""
    objects = outputs["fg"] >= settings.fg_least
    off = [np.abs(axis[objects].astype(np.int32)).max(initial=0) for axis in outputs["off"]]
    lsig = [axis[objects].max(initial=0) for axis in outputs["lsig"]]
    return Bounds(tuple(map(int, off)), tuple(map(int, lsig)))


def label_window(
    read: Read,
    core: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    bounds: Bounds,
    id_stride: Sequence[int] | None,
    faces: bool = True,
) -> Labelled:
    """Label the core of a tile as it is labelled in the whole image.

    Parameters
    ----------
    read : function of the name of an output and a box inside the image -> array.
        The box of ``id`` is in cells of `id_stride` px.
    core : the box to label.
    bounds : of the whole image; how far is read follows from them, see `reach`.
    id_stride : px per cell of ``id``, per axis; None when there is no identity branch.
    faces : also look at the voxels behind the far faces of the core, one more than the labels
        need; else contacts and outlines lack what is there.

    Returns
    -------
    labels : uint64 array
        The core; 0 is background, other values are gid + 1.
    table : columns gid, seed_*, centre_*, area, confidence, sigma_*, id_*
        One row per object whose seed voxel lies in the core, by gid.
    sightings : columns gid, voxels_in_core, area, min_*, max_* (inclusive), checksum
        One row per object with a voxel in the core, by gid; all but voxels_in_core are of
        the whole object.
    contacts : columns of `joining.CONTACTS`
        One row per pair of objects that touch each other at voxels of the core, where the
        settings join; a face between two voxels belongs to the core of the first.
    outlines : (axes, 4) int64 array
        Outlines at the far faces of the core and elsewhere, see `kernels.outlines`.
    """
    far = reach(settings, bounds)
    around = _around(core, image_shape) if faces else core
    box = grid.grow(around, far.extent, image_shape)
    wide_box = grid.grow(box, far.seeds, image_shape)
    labels = np.zeros(grid.box_shape(core), dtype=np.uint64)
    nowhere = np.zeros((len(core), 4), dtype=np.int64)

    fg = np.ascontiguousarray(read("fg", wide_box))
    if not (fg[grid.shift(box, grid.origin(wide_box))] >= settings.fg_least).any():
        return Labelled(labels, *empty_tables(settings, id_stride), nowhere)
    find = _shifted if settings.mode == "meanshift" else _fitted
    found = find(read, fg, box, wide_box, image_shape, settings, bounds, id_stride)
    if found is None:
        return Labelled(labels, *empty_tables(settings, id_stride), nowhere)
    seeds, fit, off, owner = found

    first, shape = _three(grid.origin(core), 0), _three(grid.box_shape(core), 1)
    in_core = kernels.name_core(
        labels.reshape(tuple(shape)), owner, first - fit.inner + fit.margin, seeds.gid
    )
    owned = (in_core > 0) & ((seeds.voxel >= first) & (seeds.voxel < first + shape)).all(axis=1)
    whole = kernels.see_objects(owner, in_core > 0, fit.inner, fit.margin, _three(image_shape, 1))
    sums = kernels.sum_fit(
        owner, owned, _volume(off, 1), fit.origin, fit.inner, fit.margin, UNIT,
        *fit.centres, *fit.identity, PHI, PHI_SHIFT,
    )  # fmt: skip
    seen = in_core > 0
    contacts = empty_tables(settings, id_stride)[2]
    ahead = _three([a.stop - c.stop for a, c in zip(around, core, strict=True)], 0)
    inside = first - fit.inner + fit.margin, shape, ahead
    if settings.join:
        contacts = _contacts(read, fg, wide_box, around, owner, inside, seeds.gid)
    return Labelled(
        labels,
        _instances(
            seeds.take(owned), whole[0][owned], tuple(part[owned] for part in sums), settings,
            fit.identity[2].shape[3],
        ),
        _sightings(
            seeds.gid[seen], in_core[seen], tuple(part[seen] for part in whole), len(core)
        ),
        contacts,
        kernels.outlines(owner, *inside)[3 - len(core) :],
    )  # fmt: skip


def _around(core: grid.Box, image_shape: Sequence[int]) -> grid.Box:
    """Return the core and the voxels behind its far faces."""
    return tuple(
        slice(side.start, min(side.stop + 1, length))
        for side, length in zip(core, image_shape, strict=True)
    )


def _contacts(
    read: Read,
    fg: np.ndarray,
    wide_box: grid.Box,
    around: grid.Box,
    owner: np.ndarray,
    inside: tuple[np.ndarray, ...],
    gid: np.ndarray,
) -> Columns:
    """Return which objects touch at the voxels of the core; see `label_window`."""
    first, shape, ahead = inside
    one, other, weakest = kernels.interfaces(
        owner,
        first,
        shape,
        _volume(fg[grid.shift(around, grid.origin(wide_box))]),
        _volume(np.ascontiguousarray(read("seed", around))),
        ahead,
    )
    return joining.contacts(gid[one - 1], gid[other - 1], weakest)


def _fitted(
    read: Read,
    fg: np.ndarray,
    box: grid.Box,
    wide_box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    bounds: Bounds,
    id_stride: Sequence[int] | None,
) -> "tuple[_Seeds, _Fit, np.ndarray, np.ndarray] | None":
    """Return seeds, their fit, offsets and the owners of the voxels of mode local."""
    margin_px = reach(settings, bounds).maxima
    seeds = _find_seeds(read, fg, wide_box, image_shape, settings, margin_px)
    if len(seeds.gid) == 0:
        return None
    off = np.ascontiguousarray(read("off", wide_box))
    seeds = _place(seeds, off, read("lsig", wide_box), wide_box, bounds)
    seeds = _keep(seeds, settings)
    fit = _Fit.of(read, seeds, off, box, wide_box, settings, id_stride)
    return seeds, fit, off, _owners(fit, fg, off, settings, bounds)


def _shifted(
    read: Read,
    fg: np.ndarray,
    box: grid.Box,
    wide_box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    bounds: Bounds,
    id_stride: Sequence[int] | None,
) -> "tuple[_Seeds, _Fit, np.ndarray, np.ndarray] | None":
    """Return the same as `_fitted` of mode meanshift; an object is named after its best voxel."""
    where = np.nonzero(_volume(fg) >= settings.fg_least)
    voxel = np.stack(where, axis=1) + _three(grid.origin(wide_box), 0)
    off, points = _points(read, where, wide_box, settings, bounds)
    modes = meanshift.seeds(*meanshift.modes(points, settings.kernel), settings.kernel)
    place = voxel - _three(grid.origin(box), 0)
    inside = ((place >= 0) & (place < _three(grid.box_shape(box), 1))).all(axis=1)
    voxel, place = voxel[inside], place[inside]
    mode = meanshift.owners(points[inside], modes, settings.kernel)
    score, origin = _scores(read, box, image_shape, settings, (settings.smooth,) * fg.ndim)
    score = score[tuple((voxel - origin).T)].astype(np.int64)

    best_first = np.lexsort((np.arange(len(mode)), -score, mode))
    found, first, size = np.unique(mode[best_first], return_index=True, return_counts=True)
    kept = (found >= 0) & (size >= settings.least_fragment)
    if not kept.any():
        return None
    best = np.sort(best_first[first[kept]])  # in the order of voxels, hence of gid
    level = round(fixedpoint.SCALE["lsig"] * math.log(max(1.0, settings.kernel.sigma_px)))
    seeds = _Seeds(
        _gids(voxel[best], image_shape),
        score[best],
        voxel[best],
        modes[mode[best], :3],
        np.full((len(best), 3), min(level, 255)),
    )
    fit = _Fit.of(read, seeds, off, box, wide_box, replace(settings, identity=0.0), id_stride)
    number = np.zeros(len(modes) + 1, dtype=np.int32)  # the last is that of no mode, -1
    number[mode[best]] = np.arange(1, len(best) + 1)
    owner = np.zeros(fit.shape + 2 * fit.margin, dtype=np.int32)
    owner[tuple((place + fit.margin).T)] = number[mode]
    return seeds, fit, off, owner


def _points(
    read: Read,
    where: tuple[np.ndarray, ...],
    box: grid.Box,
    settings: Settings,
    bounds: Bounds,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of a box, 0 where they are not compared, and the voxels' points."""
    ndim = len(box)
    off = np.zeros((ndim, *grid.box_shape(box)), dtype=np.int16)
    if settings.vectors != "conv":
        off = np.ascontiguousarray(read("off", box))
    emb = np.zeros((0, *grid.box_shape(box)), dtype=np.int16)
    if settings.vectors != "spatial":
        emb = read("emb", box)
    points = np.zeros((len(where[0]), 3 + len(emb)), dtype=np.int64)
    points[:, 3 - ndim : 3] = _volume(off, 1)[(slice(None), *where)].T
    _check(abs(points[:, :3]).max(axis=0)[None], bounds.off, "offset (1/16 px)", box)
    points[:, :3] += UNIT * (np.stack(where, axis=1) + _three(grid.origin(box), 0))
    points[:, 3:] = _volume(emb, 1)[(slice(None), *where)].T
    return off, points


@dataclass(frozen=True)
class _Seeds:
    """Seeds by gid; tables of three columns have the axes z, y, x, z is 0 in 2D."""

    gid: np.ndarray
    score: np.ndarray
    voxel: np.ndarray
    centre: np.ndarray
    lsig: np.ndarray

    def take(self, which: np.ndarray) -> "_Seeds":
        return _Seeds(*(getattr(self, field.name)[which] for field in fields(self)))


def _find_seeds(
    read: Read,
    fg: np.ndarray,
    box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    margin_px: Sequence[int],
) -> _Seeds:
    """Return the seeds in the box of `fg`, not yet with centre and bandwidth."""
    score, origin = _scores(read, box, image_shape, settings, margin_px)
    least = math.floor(settings.seed * _score_one(settings)) + 1
    voxel = kernels.find_seeds(
        score, _volume(fg), least, settings.fg_least,
        _three(settings.seed_window, 0), _three(grid.origin(box), 0) - origin,
    )  # fmt: skip
    score = score[tuple(voxel.T)].astype(np.int64)
    voxel += origin
    return _Seeds(_gids(voxel, image_shape), score, voxel, voxel, voxel)


def _scores(
    read: Read,
    box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    margin_px: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the seed map, smoothed, of a box and a margin, three axes; and its first voxel."""
    read_box = grid.grow(box, margin_px, image_shape)
    score = np.ascontiguousarray(read("seed", read_box))
    for _ in range(settings.smooth):
        score = _box_sum(score)
    return _volume(score), _three(grid.origin(read_box), 0)


def _gids(voxel: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Return the C-order indices of voxels in the image."""
    gid = np.zeros(len(voxel), dtype=np.int64)
    for axis, length in enumerate(_three(image_shape, 1)):
        gid = gid * length + voxel[:, axis]
    return gid


def _score_one(settings: Settings) -> int:
    """Return the score of a voxel around which all seed probabilities are 1."""
    return fixedpoint.SCALE["seed"] * 3 ** (len(settings.seed_window) * settings.smooth)


def _box_sum(score: np.ndarray) -> np.ndarray:
    """Return the sum over the 3-wide box around each voxel, 0 outside, uint32."""
    result = score.astype(np.uint32)
    for axis in range(result.ndim):
        line = np.moveaxis(result, axis, 0)
        total = line.copy()
        total[1:] += line[:-1]
        total[:-1] += line[1:]
        result = np.moveaxis(total, 0, axis)
    return np.ascontiguousarray(result)


def _place(
    seeds: _Seeds, off: np.ndarray, lsig: np.ndarray, box: grid.Box, bounds: Bounds
) -> _Seeds:
    """Return the seeds with the centre and bandwidth that the outputs give them."""
    ndim = len(box)
    at = tuple((seeds.voxel[:, 3 - ndim :] - grid.origin(box)).T)
    centre = UNIT * seeds.voxel
    centre[:, 3 - ndim :] += off[(slice(None), *at)].T
    bandwidth = np.zeros_like(centre)
    bandwidth[:, 3 - ndim :] = lsig[(slice(None), *at)].T
    _check(bandwidth, bounds.lsig, "bandwidth", box)
    return _Seeds(seeds.gid, seeds.score, seeds.voxel, centre, bandwidth)


def _check(found: np.ndarray, bounds: Sequence[int], what: str, box: grid.Box) -> None:
    if (found > _three(bounds, 0)).any():
        raise InputError(
            f"network outputs: {what} {found.max(axis=0)} in {box} exceeds the maximum "
            f"{tuple(bounds)} of the image; outputs of different runs are mixed, redo them"
        )


def _keep(seeds: _Seeds, settings: Settings) -> _Seeds:
    """Return the seeds that are not suppressed by a better one."""
    cost = _cost(settings.suppress)
    radius = _radii(max(cost - 1, 0))[seeds.lsig]
    radius[:, : 3 - len(settings.seed_window)] = 0
    kept = kernels.keep_seeds(
        seeds.score, seeds.centre, radius, seeds.lsig, WEIGHT, cost,
        *kernels.bins(seeds.centre, radius.max(axis=0)),
    )  # fmt: skip
    return seeds.take(kept)


def _radii(cost: int) -> np.ndarray:
    """Return the largest distance, 1/16 px, that costs at most `cost`, for every ``lsig``."""
    return np.array([math.isqrt(cost // int(weight)) for weight in WEIGHT])


@dataclass(frozen=True)
class _Fit:
    """What the compiled loops need to compute the cost of a voxel for a seed.

    Attributes
    ----------
    origin, inner : first voxel of the arrays that were read and of the box to assign.
    shape, margin : of the box to assign.
    centres : centre and weight of the seeds.
    identity : price and length of vectors, those of voxels and of seeds, stride, first cell.
    """

    origin: np.ndarray
    inner: np.ndarray
    shape: np.ndarray
    margin: np.ndarray
    seeds: _Seeds
    centres: tuple[np.ndarray, np.ndarray]
    identity: tuple

    @classmethod
    def of(
        cls,
        read: Read,
        seeds: _Seeds,
        off: np.ndarray,
        box: grid.Box,
        wide_box: grid.Box,
        settings: Settings,
        id_stride: Sequence[int] | None,
    ) -> "_Fit":
        """Read identity vectors and put everything into arrays of three axes."""
        weight = WEIGHT[seeds.lsig]
        weight[:, : 3 - len(box)] = 0
        price, of_seeds = 0, np.zeros((len(seeds.gid), 0), dtype=np.int8)
        if settings.identity > 0 and id_stride is not None:
            price = round(settings.identity * 2**COST_BITS / ID_ONE)
            vectors, stride, first = _vectors(read, wide_box, id_stride)
            of_seeds = np.ascontiguousarray(vectors[tuple((seeds.voxel // stride - first).T)])
            del vectors
        vectors, stride, first = _vectors(read, box, id_stride)
        return cls(
            origin=_three(grid.origin(wide_box), 0),
            inner=_three(grid.origin(box), 0),
            shape=_three(grid.box_shape(box), 1),
            margin=np.array([len(box) - 2, 1, 1]),
            seeds=seeds,
            centres=(seeds.centre, weight),
            identity=(price, ID_ONE, vectors, of_seeds, stride, first),
        )


def _vectors(
    read: Read, box: grid.Box, id_stride: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return identity vectors (z, y, x, channel) of a box, px per cell, and the first cell."""
    if id_stride is None:
        return np.zeros((1, 1, 1, 0), dtype=np.int8), np.full(3, 1 << 62), np.zeros(3, np.int64)
    cells = tuple(
        slice(side.start // stride, -(-side.stop // stride))
        for side, stride in zip(box, id_stride, strict=True)
    )
    vectors = np.moveaxis(_volume(read("id", cells), 1), 0, 3)
    return np.ascontiguousarray(vectors), _three(id_stride, 1), _three(grid.origin(cells), 0)


def _owners(
    fit: _Fit, fg: np.ndarray, off: np.ndarray, settings: Settings, bounds: Bounds
) -> np.ndarray:
    """Return for the voxels of the box the seed that owns each, cleaned; see `kernels`."""
    owner = np.zeros(fit.shape + 2 * fit.margin, dtype=np.int32)
    cost = _cost(settings.phi)
    radius = _radii(cost)[fit.seeds.lsig]
    radius[:, : 3 - fg.ndim] = 0
    farthest = kernels.assign(
        owner, _volume(fg), _volume(off, 1), settings.fg_least, fit.origin, fit.inner,
        fit.margin, UNIT, cost, fit.centres[0], radius, fit.centres[1],
        *kernels.bins(fit.seeds.centre, radius.max(axis=0)), *fit.identity,
    )  # fmt: skip
    box = tuple(slice(start, start + n) for start, n in zip(fit.inner, fit.shape, strict=True))
    _check(farthest[None], bounds.off, "offset (1/16 px)", box)
    kernels.keep_component(
        owner, fit.seeds.voxel - fit.inner + fit.margin, fit.margin, settings.least_fragment
    )
    kernels.fill_holes(owner, len(fit.seeds.gid), fit.margin)
    return owner


def _instances(
    seeds: _Seeds,
    area: np.ndarray,
    sums: tuple[np.ndarray, ...],
    settings: Settings,
    n_channels: int,
) -> Columns:
    """Return the table of objects, one row per seed."""
    ndim = len(settings.seed_window)
    accepted, phi_sum, id_sum = sums
    axes = dict(zip("zyx"[-ndim:], range(3 - ndim, 3), strict=True))
    fit = phi_sum / (PHI_ONE * np.maximum(accepted, 1).astype(np.float64))
    vectors = _unit(id_sum)
    return {
        "gid": seeds.gid.astype(np.uint64),
        **{f"seed_{name}": seeds.voxel[:, axis] for name, axis in axes.items()},
        **{f"centre_{name}": seeds.centre[:, axis] / UNIT for name, axis in axes.items()},
        "area": area,
        "confidence": (seeds.score / _score_one(settings) * fit).astype(np.float32),
        **{
            f"sigma_{name}": fixedpoint.SIGMA[seeds.lsig[:, axis]].astype(np.float32)
            for name, axis in axes.items()
        },
        **{f"id_{channel}": vectors[:, channel] for channel in range(n_channels)},
    }


def _unit(sums: np.ndarray) -> np.ndarray:
    """Return rows of length 1 as float32; rows of zeros stay.

    The squares are added one channel after the other: a sum over an axis may be done in
    another order on another processor.
    """
    vectors = sums.astype(np.float64)
    square = np.zeros(len(vectors))
    for channel in vectors.T:
        square = square + channel * channel
    length = np.sqrt(square)[:, None]
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0).astype(
        np.float32
    )


def _sightings(
    gid: np.ndarray, in_core: np.ndarray, whole: tuple[np.ndarray, ...], ndim: int
) -> Columns:
    """Return what the core shows of the objects in it, and what they are as a whole."""
    area, first, last, checksum = whole
    axes = dict(zip("zyx"[-ndim:], range(3 - ndim, 3), strict=True))
    return {
        "gid": gid.astype(np.uint64),
        "voxels_in_core": in_core,
        "area": area,
        **{f"min_{name}": first[:, axis] for name, axis in axes.items()},
        **{f"max_{name}": last[:, axis] for name, axis in axes.items()},
        "checksum": checksum,
    }


def empty_tables(
    settings: Settings, id_stride: Sequence[int] | None
) -> tuple[Columns, Columns, Columns]:
    """Return a table of instances, of sightings and of contacts without rows."""
    none, nowhere = np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    seeds = _Seeds(none, none, nowhere, nowhere, nowhere)
    n_channels = 0 if id_stride is None else N_CHANNELS
    sums = (none, none, np.zeros((0, n_channels), dtype=np.int64))
    whole = (none, nowhere, nowhere, none.astype(np.uint64))
    return (
        _instances(seeds, none, sums, settings, n_channels),
        _sightings(none, none, whole, len(settings.seed_window)),
        joining.contacts(none, none, np.zeros((0, 2), dtype=np.int64)),
    )


def _volume(array: np.ndarray, n_leading: int = 0) -> np.ndarray:
    """Return an array with three axes after its leading ones."""
    lead, space = array.shape[:n_leading], array.shape[n_leading:]
    return array.reshape(lead + (1,) * (3 - len(space)) + space)


def _three(values: Sequence[int], missing: int) -> np.ndarray:
    """Return values for the axes z, y, x; `missing` is that of z in 2D."""
    return np.array([missing] * (3 - len(values)) + [int(value) for value in values])
