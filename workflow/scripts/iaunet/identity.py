"""One identity per object: what all tiles say about it, and whether they agree.

Clustering names an object by its ``gid``, the index of its seed voxel in the whole image, so
two tiles that see the object give it the same name. Nothing has to be matched here; it is
proved: every tile that saw an object must report the same area and the same checksum of its
voxels, and the voxels in the cores, which partition the image, must add up to that area.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

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

SEEN_BITS = 12
SEEN = 1 << SEEN_BITS


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
    numbered = np.empty(labels.shape, dtype=numbers.dtype)
    flat = np.ascontiguousarray(labels).reshape(-1)
    first, last = _extent(flat)
    # Of a large image the values that can occur here are few.
    near = slice(np.searchsorted(values, first), np.searchsorted(values, last, side="right"))
    counts = np.zeros(near.stop - near.start, dtype=np.int64)
    n_strange = _look_up(flat, values[near], numbers[near], numbered.reshape(-1), counts)
    found, counts = values[near][counts > 0], counts[counts > 0]
    if n_strange:
        place = np.minimum(np.searchsorted(values, flat), len(values) - 1)
        more, n_more = np.unique(flat[values[place] != flat], return_counts=True)
        order = np.argsort(np.concatenate([found, more]))
        found = np.concatenate([found, more])[order]
        counts = np.concatenate([counts, n_more])[order]
    return numbered, found, counts


@njit(cache=True, nogil=True)
def _extent(labels):
    """Return the smallest label above 0 and the largest; 1 and 0 if all are 0."""
    first, last = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)
    for label in labels:
        first = min(first, label - np.uint64(1))  # 0 becomes the largest
        last = max(last, label)
    return max(first + np.uint64(1), np.uint64(1)), last


@njit(cache=True, nogil=True)
def _look_up(labels, values, numbers, numbered, counts):
    """Write the number of every label; count its voxels; return how many have no number."""
    nothing = numbered.dtype.type(0)
    previous = np.uint64(0)
    place, number, n_strange = -1, nothing, 0
    seen = np.zeros(SEEN, dtype=np.uint64)  # the lines of an object follow each other
    places = np.zeros(SEEN, dtype=np.int64)
    for voxel in range(len(labels)):
        label = labels[voxel]
        if label != previous:
            previous = label
            slot = (label * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - SEEN_BITS)
            if label != 0 and seen[slot] != label:
                low, high = 0, len(values)
                while low < high:
                    middle = (low + high) // 2
                    if values[middle] < label:
                        low = middle + 1
                    else:
                        high = middle
                known = low < len(values) and values[low] == label
                seen[slot], places[slot] = label, low if known else -1
            place = places[slot] if label != 0 else -1
            number = numbers[place] if place >= 0 else nothing
        numbered[voxel] = number
        if place >= 0:
            counts[place] += 1
        elif label != 0:
            n_strange += 1
    return n_strange
