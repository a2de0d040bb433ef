"""One identity per object: what all tiles say about it, and whether they agree.

Clustering names an object by its ``gid``, the index of its seed voxel in the whole image, so
two tiles that see the object give it the same name. Nothing has to be matched here; it is
proved: every tile that saw an object must report the same area and the same checksum of its
voxels, and the voxels in the cores, which partition the image, must add up to that area.
"""

from dataclasses import dataclass

import numpy as np

AGREED = "agreed"
NEAR = "near"
CUT = "cut"
EMPTY = "empty"
ORPHAN = "orphan"
CONFLICT = "conflict"
VERDICTS = (AGREED, NEAR, CUT, EMPTY, ORPHAN, CONFLICT)
"""The worst last."""
OF_FAILED_TILES = (CUT, NEAR)
"""No disagreement of tiles: what a tile that failed has cut, or may have changed."""


@dataclass(frozen=True)
class Sightings:
    """One element per tile and object with at least one voxel in the core of that tile.

    Attributes
    ----------
    gid, checksum : uint64 arrays
    tile, batch, voxels_in_core, area : int64 arrays
        `area` is that of the whole object as the tile sees it.
    """

    gid: np.ndarray
    tile: np.ndarray
    batch: np.ndarray
    voxels_in_core: np.ndarray
    area: np.ndarray
    checksum: np.ndarray


@dataclass(frozen=True)
class Verdicts:
    """What all tiles together say; one element per gid, ascending.

    Attributes
    ----------
    gid : uint64 array
    area : int64 array
        As reported by the tile with most of its voxels; 0 when no tile saw it.
    claimed : int64 array
        Sum over the cores.
    n_tiles, n_batches, min_voxels_in_a_core : int64 arrays
    tiles, first : int64 arrays
        The tiles that saw each, ascending, one gid after the other; where those of a gid begin.
    agreement : float array
        Share of these tiles that report the same area and checksum; NaN without tiles.
    """

    gid: np.ndarray
    area: np.ndarray
    claimed: np.ndarray
    n_tiles: np.ndarray
    n_batches: np.ndarray
    min_voxels_in_a_core: np.ndarray
    tiles: np.ndarray
    first: np.ndarray
    agreement: np.ndarray

    def tiles_of(self, index: int) -> np.ndarray:
        """Return the tiles that saw one of them."""
        return self.tiles[self.first[index] : self.first[index] + self.n_tiles[index]]


def weigh(gid: np.ndarray, sightings: Sightings) -> Verdicts:
    """Gather the sightings of every gid.

    Parameters
    ----------
    gid : uint64 array, ascending, unique
        All objects; sightings of others are left out.
    """
    seen = np.isin(sightings.gid, gid)
    order = np.lexsort((sightings.tile[seen], -sightings.voxels_in_core[seen], sightings.gid[seen]))
    by_gid = np.flatnonzero(seen)[order]
    row = np.searchsorted(gid, sightings.gid[by_gid])
    n_tiles = np.bincount(row, minlength=len(gid))
    first = np.concatenate([[0], np.cumsum(n_tiles)])
    some = n_tiles > 0
    reference = np.repeat(by_gid[first[:-1][some]], n_tiles[some])
    same = (sightings.area[by_gid] == sightings.area[reference]) & (
        sightings.checksum[by_gid] == sightings.checksum[reference]
    )
    area = np.zeros(len(gid), dtype=np.int64)
    area[some] = sightings.area[by_gid[first[:-1][some]]]
    claimed = np.zeros(len(gid), dtype=np.int64)
    np.add.at(claimed, row, sightings.voxels_in_core[by_gid])
    fewest = np.full(len(gid), np.iinfo(np.int64).max)
    np.minimum.at(fewest, row, sightings.voxels_in_core[by_gid])
    n_batches = sightings.batch.max(initial=0) + 1
    in_batch = np.unique(row * n_batches + sightings.batch[by_gid]) // n_batches
    tiles = sightings.tile[by_gid[np.lexsort((sightings.tile[by_gid], row))]]
    agreeing = np.bincount(row, weights=same, minlength=len(gid))
    with np.errstate(invalid="ignore"):
        agreement = agreeing / n_tiles
    return Verdicts(
        gid=gid,
        area=area,
        claimed=claimed,
        n_tiles=n_tiles,
        n_batches=np.bincount(in_batch, minlength=len(gid)),
        min_voxels_in_a_core=np.where(some, fewest, 0),
        tiles=tiles,
        first=first[:-1],
        agreement=agreement,
    )


def verdict(verdicts: Verdicts, rows: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return the verdict on each gid.

    Parameters
    ----------
    rows : int64 array
        How often the gid stands in the tables of instances.
    voxels : int64 array
        Voxels it has in the label image.

    Returns
    -------
    array of str
        ``agreed``: all tiles report the same object, its voxels are all there and one table
        owns it. ``conflict``: not so. ``orphan``: voxels, but no table knows the object.
        ``empty``: a table knows it, but it has no voxel.
    """
    agreed = (
        (verdicts.agreement == 1)
        & (verdicts.claimed == verdicts.area)
        & (voxels == verdicts.area)
        & (rows == 1)
    )
    found = np.where(agreed, AGREED, CONFLICT).astype(object)
    found[rows == 0] = ORPHAN
    found[voxels == 0] = EMPTY
    return found


def relabel(
    labels: np.ndarray, values: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace label values by numbers.

    Looks up runs of equal voxels, so that the cost hardly depends on how many values there are.

    Parameters
    ----------
    labels : uint64 array
    values : uint64 array, ascending, unique, the first is 0
    numbers : array, one per value, the first is 0

    Returns
    -------
    numbered : array, shape of `labels`, type of `numbers`
        0 where the value is not among `values`.
    found, counts : uint64 and int64 arrays
        All values but 0 in `labels`, ascending, and how many voxels have them.

    Examples
    --------
    >>> values, numbers = np.array([0, 9, 70], np.uint64), np.array([0, 1, 2], np.uint8)
    >>> relabel(np.array([0, 70, 70, 9], np.uint64), values, numbers)[0]
    array([0, 2, 2, 1], dtype=uint8)
    """
    flat = np.ascontiguousarray(labels).reshape(-1)
    start = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])[: len(flat)]
    run, length = flat[start], np.diff(start, append=len(flat))
    there = np.flatnonzero(run)
    value, voxels = run[there], length[there]
    # Of a large image the values that can occur here are few; the last stands for all others.
    most = np.iinfo(np.uint64).max
    first, end = np.searchsorted(values, [value.min(initial=most), value.max(initial=0)])
    near = np.append(values[first : end + 1], np.uint64(0))
    place = np.searchsorted(near[:-1], value)
    strange = near[place] != value
    place[strange] = len(near) - 1
    number = np.zeros(len(run), dtype=numbers.dtype)
    number[there] = np.append(numbers[first : end + 1], numbers.dtype.type(0))[place]
    counts = np.bincount(place, weights=voxels, minlength=len(near)).astype(np.int64)[:-1]
    found, counts = near[:-1][counts > 0], counts[counts > 0]
    if strange.any():
        more, which = np.unique(value[strange], return_inverse=True)
        n_more = np.bincount(which, weights=voxels[strange]).astype(np.int64)
        order = np.argsort(np.concatenate([found, more]))
        found = np.concatenate([found, more])[order]
        counts = np.concatenate([counts, n_more])[order]
    return np.repeat(number, length).reshape(labels.shape), found, counts
