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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from iaunet import fixedpoint, grid, joining, kernels, meanshift
from iaunet.assignment import Fit, owners
from iaunet.bounds import COST_BITS, UNIT, Bounds, check, reach
from iaunet.grid import volume
from iaunet.kernels import three
from iaunet.seeds import (
    Loops,
    Read,
    Seeds,
    are_in,
    find_seeds,
    gids,
    kept,
    placed,
    score_one,
    seed_scores,
)
from iaunet.settings import Settings

PHI_ONE = 65535
PHI_SHIFT = COST_BITS - 12
PHI = np.rint(PHI_ONE * np.exp(-(np.arange(12 << 12) + 0.5) / 4096)).astype(np.uint16)
"""exp(-cost) in 1/65535 for costs in steps of 1/4096; beyond the table it is 0."""

N_CHANNELS = 16

Columns = dict[str, np.ndarray]


class Labelled(NamedTuple):
    """The core of a tile, labelled; see `label_windows`."""

    labels: np.ndarray
    table: Columns
    sightings: Columns
    contacts: Columns
    outlines: np.ndarray


class Owned(NamedTuple):
    """The voxels of a window and whose they are; arrays of the box to assign, owner with margin."""

    seeds: Seeds
    fit: Fit
    fg: np.ndarray
    off: np.ndarray
    owner: np.ndarray


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
        ndim=outputs["fg"].ndim,
    )
    return joining.renamed(found.labels, found.table["gid"], joined.gid)


def load(settings: Settings, id_stride: Sequence[int] | None) -> None:
    """Label one object of a few voxels, for which numba loads the loops of mode local."""
    shape = (8,) * len(settings.seed_window)
    axes = {"fg": (), "seed": (), "off": (len(shape),), "lsig": (len(shape),), "id": (N_CHANNELS,)}
    outputs = {
        name: np.zeros((*lead, *shape), fixedpoint.DTYPE[name]) for name, lead in axes.items()
    }
    for name in ("fg", "seed"):
        outputs[name][:] = fixedpoint.SCALE[name]
    label_whole(outputs, replace(settings, mode="local"), id_stride)


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
    loops: Loops = kernels,
) -> Labelled:
    """Label the core of a tile as it is labelled in the whole image; see `label_windows`."""
    args = image_shape, settings, bounds, id_stride, faces, loops
    (found,) = label_windows(read, [core], *args)
    return found


def label_windows(
    read: Read,
    cores: Sequence[grid.Box],
    image_shape: Sequence[int],
    settings: Settings,
    bounds: Bounds,
    id_stride: Sequence[int] | None,
    faces: bool = True,
    loops: Loops = kernels,
) -> Iterator[Labelled]:
    """Label cores as they are labelled in the whole image, in one window around all of them.

    Each gets what it would get alone; what lies around the tiles is looked at once.

    Parameters
    ----------
    read : function of the name of an output and a box inside the image -> array.
        The box of ``id`` is in cells of `id_stride` px.
    cores : boxes to label, one or more.
    bounds : of the whole image; how far is read follows from them, see `reach`.
    id_stride : px per cell of ``id``, per axis; None when there is no identity branch.
    faces : also look at the voxels behind the far faces of the cores, one more than the labels
        need; else contacts and outlines lack what is there.
    loops : what computes; the result is the same. Mode meanshift knows `kernels` only.

    Yields
    ------
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
    outlines : (axes, longest side) int64 array
        Where outlines lie in the core and at its far faces, see `kernels.outlines`.
    """
    far = reach(settings, bounds)
    hull = grid.hull(cores)
    box = grid.grow(_around(hull, image_shape) if faces else hull, far.extent, image_shape)
    wide_box = grid.grow(box, far.seeds, image_shape)
    find = _shifted if settings.mode == "meanshift" else _fitted
    found = find(read, box, wide_box, image_shape, settings, bounds, id_stride, loops)
    if found is None:
        for core in cores:
            shape = grid.box_shape(core)
            nowhere = np.zeros((len(core), max(shape)), dtype=np.int64)
            nothing = empty_tables(settings, id_stride)
            yield Labelled(np.zeros(shape, dtype=np.uint64), *nothing, nowhere)
        return
    seeds, fit, fg, off, owner = found
    whole = loops.see_objects(owner, len(seeds.gid), fit.inner, fit.margin, three(image_shape, 1))
    alive = whole[0] > 0
    owned = [alive & are_in(seeds.voxel, core) for core in cores]
    sums = loops.sum_fit(
        owner, np.any(owned, axis=0), volume(off, 1), fit.inner, fit.margin, UNIT,
        *fit.centres, *fit.identity, PHI, PHI_SHIFT,
    )  # fmt: skip
    for core, here in zip(cores, owned, strict=True):
        labels = np.zeros(grid.box_shape(core), dtype=np.uint64)
        first, shape = three(grid.origin(core), 0), three(labels.shape, 1)
        first = first - fit.inner + fit.margin
        in_core = loops.name_core(labels.reshape(tuple(shape)), owner, first, seeds.gid)
        around = _around(core, image_shape) if faces else core
        ahead = three([a.stop - c.stop for a, c in zip(around, core, strict=True)], 0)
        contacts = empty_tables(settings, id_stride)[2]
        if settings.join:
            inside = first, shape, ahead
            contacts = _contacts(read, fg, box, around, owner, inside, seeds.gid, loops)
        seen = in_core > 0
        yield Labelled(
            labels,
            _instances(
                seeds.take(here), whole[0][here], tuple(part[here] for part in sums), settings,
                fit.identity[2].shape[3],
            ),
            _sightings(
                seeds.gid[seen], in_core[seen], tuple(part[seen] for part in whole), len(core)
            ),
            contacts,
            loops.outlines(owner, first, shape, ahead)[3 - len(core) :],
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
    box: grid.Box,
    around: grid.Box,
    owner: np.ndarray,
    inside: tuple[np.ndarray, ...],
    gid: np.ndarray,
    loops: Loops,
) -> Columns:
    """Return which objects touch at the voxels of the core; see `label_windows`."""
    first, shape, ahead = inside
    one, other, weakest = loops.interfaces(
        owner,
        first,
        shape,
        volume(np.ascontiguousarray(fg[grid.shift(around, grid.origin(box))])),
        volume(np.ascontiguousarray(read("seed", around))),
        ahead,
    )
    return joining.contacts(gid[one - 1], gid[other - 1], weakest)


def _fitted(
    read: Read,
    box: grid.Box,
    wide_box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    bounds: Bounds,
    id_stride: Sequence[int] | None,
    loops: Loops,
) -> "Owned | None":
    """Return the owners of the voxels of mode local; None when there is no object."""
    fg = np.ascontiguousarray(read("fg", wide_box))
    inner = grid.shift(box, grid.origin(wide_box))
    if not (fg[inner] >= settings.fg_least).any():
        return None
    margin_px = reach(settings, bounds).maxima
    seeds = find_seeds(read, fg, wide_box, image_shape, settings, margin_px, loops)
    if len(seeds.gid) == 0:
        return None
    fg = np.ascontiguousarray(fg[inner])  # what is around it is not needed any more
    off = np.ascontiguousarray(read("off", box))
    seeds = kept(placed(seeds, read, off, box, wide_box, bounds), settings)
    fit = Fit.of(read, seeds, box, wide_box, settings, id_stride)
    return Owned(seeds, fit, fg, off, owners(fit, fg, off, settings, bounds, loops))


def _shifted(
    read: Read,
    box: grid.Box,
    wide_box: grid.Box,
    image_shape: Sequence[int],
    settings: Settings,
    bounds: Bounds,
    id_stride: Sequence[int] | None,
    _: Loops,
) -> "Owned | None":
    """Return the same as `_fitted` of mode meanshift; an object is named after its best voxel."""
    fg = read("fg", wide_box)
    inner = grid.shift(box, grid.origin(wide_box))
    if not (fg[inner] >= settings.fg_least).any():
        return None
    where = np.nonzero(volume(fg) >= settings.fg_least)
    voxel = np.stack(where, axis=1) + three(grid.origin(wide_box), 0)
    off, points = _points(read, where, wide_box, settings, bounds)
    modes = meanshift.seeds(*meanshift.modes(points, settings.kernel), settings.kernel)
    inside = are_in(voxel, box)
    voxel = voxel[inside]
    place = voxel - three(grid.origin(box), 0)
    mode = meanshift.owners(points[inside], modes, settings.kernel)
    score, origin = seed_scores(read, box, image_shape, settings, (settings.smooth,) * fg.ndim)
    score = score[tuple((voxel - origin).T)].astype(np.int64)

    best_first = np.lexsort((np.arange(len(mode)), -score, mode))
    found, first, size = np.unique(mode[best_first], return_index=True, return_counts=True)
    large = (found >= 0) & (size >= settings.least_fragment)
    if not large.any():
        return None
    best = np.sort(best_first[first[large]])  # in the order of voxels, hence of gid
    level = round(fixedpoint.SCALE["lsig"] * math.log(max(1.0, settings.kernel.sigma_px)))
    seeds = Seeds(
        gids(voxel[best], image_shape),
        score[best],
        voxel[best],
        modes[mode[best], :3],
        np.full((len(best), 3), min(level, 255)),
    )
    fit = Fit.of(read, seeds, box, wide_box, replace(settings, identity=0.0), id_stride)
    number = np.zeros(len(modes) + 1, dtype=np.int32)  # the last is that of no mode, -1
    number[mode[best]] = np.arange(1, len(best) + 1)
    owner = np.zeros(fit.shape + 2 * fit.margin, dtype=np.int32)
    owner[tuple((place + fit.margin).T)] = number[mode]
    fg, off = fg[inner], np.ascontiguousarray(off[(slice(None), *inner)])
    return Owned(seeds, fit, fg, off, owner)


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
    points[:, 3 - ndim : 3] = volume(off, 1)[(slice(None), *where)].T
    check(abs(points[:, :3]).max(axis=0)[None], bounds.off, "offset (1/16 px)", box)
    points[:, :3] += UNIT * (np.stack(where, axis=1) + three(grid.origin(box), 0))
    points[:, 3:] = volume(emb, 1)[(slice(None), *where)].T
    return off, points


def _instances(
    seeds: Seeds,
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
        "confidence": (seeds.score / score_one(settings) * fit).astype(np.float32),
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
    seeds = Seeds(none, none, nowhere, nowhere, nowhere)
    n_channels = 0 if id_stride is None else N_CHANNELS
    sums = (none, none, np.zeros((0, n_channels), dtype=np.int64))
    whole = (none, nowhere, nowhere, none.astype(np.uint64))
    return (
        _instances(seeds, none, sums, settings, n_channels),
        _sightings(none, none, whole, len(settings.seed_window)),
        joining.contacts(none, none, np.zeros((0, 2), dtype=np.int64)),
    )
