"""Labels of tiles, from any segmenter: what each tile shows, and what matches in the next one.

What a label shows in one tile is a **node**. Nodes of two tiles that overlap match by the voxels
that they share where both tiles are trusted; nodes of tiles that only meet, by their cut faces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from iaunet import labels as label_arrays
from iaunet import pairs
from iaunet.grid import Box, intersection, shift
from iaunet.layout import Layout

Read = Callable[[int, Box], np.ndarray]
"""Labels of a tile in a box of the image that lies inside its window."""
Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""How alike nodes are by another measure, 0 to 1, of two arrays of their indices."""


@dataclass(frozen=True)
class Nodes:
    """Every label of every tile, by tile, then by label.

    Attributes
    ----------
    tile : int64 array; label : uint64 array; area : int64 array
    whole : bool array
        Nothing of it may be missing: it ends before where the trust in its tile ends.
    entire : bool array
        It does not touch a cutting face of its window; near one it may be wrong.
    trusted : bool array
        It reaches where its tile is trusted.
    owned : bool array
        Its centre lies deeper in its tile than in any other.
    """

    tile: np.ndarray
    label: np.ndarray
    area: np.ndarray
    whole: np.ndarray
    entire: np.ndarray
    trusted: np.ndarray
    owned: np.ndarray

    def index(self, tile: int, labels: np.ndarray) -> np.ndarray:
        """Return which nodes the labels of a tile are; all must exist."""
        first, end = np.searchsorted(self.tile, (tile, tile + 1))
        return first + np.searchsorted(self.label[first:end], labels)


@dataclass(frozen=True)
class Matches:
    """Pairs of nodes of two tiles that share ground, or meet at a face.

    Attributes
    ----------
    one, other : int64 arrays
        Nodes.
    shared : int64 array
        Voxels where both tiles are trusted, or of the face.
    iou : float array
        `shared` over the union there.
    inside : float array
        `shared` over the smaller of the two there.
    mutual : bool array
        Each is the best match of the other; else one is of the other.
    at_face : bool array
    """

    one: np.ndarray
    other: np.ndarray
    shared: np.ndarray
    iou: np.ndarray
    inside: np.ndarray
    mutual: np.ndarray
    at_face: np.ndarray


@dataclass(frozen=True)
class Covers:
    """What lies on what: `share` of the voxels of `node` lie on `by`, a node of another tile.

    `missed` are nodes of which another tile sees nothing, though both are trusted there.
    """

    node: np.ndarray
    by: np.ndarray
    share: np.ndarray
    missed: np.ndarray


def nodes_of_tile(labels: np.ndarray, layout: Layout, tile: int, near: Sequence[int]) -> Nodes:
    """Return the nodes of one tile.

    Parameters
    ----------
    labels : unsigned integer array, shape of the tile
    near : tiles that overlap it
    """
    found = label_arrays.extents(labels, layout.starts[tile])
    low, high = layout.cutting(tile)
    trusted = np.array([(side.start, side.stop) for side in layout.trusted(tile)]).T
    # A label that ends where trust ends may go on behind it.
    least, most = trusted[0] + low, trusted[1] - high
    window = layout.starts[tile] + low, layout.stops[tile] - high
    centre = found.sums // np.maximum(found.areas, 1)[:, None]
    own = layout.depths(tile, centre)
    owned = np.ones(len(own), dtype=bool)
    for other in near:
        depth = layout.depths(other, centre)
        owned &= (own > depth) | ((own == depth) & (tile < other))
    return Nodes(
        tile=np.full(len(own), tile, dtype=np.int64),
        label=found.ids,
        area=found.areas,
        whole=((found.starts >= least) & (found.stops <= most)).all(1),
        entire=((found.starts >= window[0]) & (found.stops <= window[1])).all(1),
        trusted=_reaching(labels, found, trusted, layout.starts[tile]),
        owned=owned,
    )


def _reaching(
    labels: np.ndarray, found: label_arrays.Extents, trusted: np.ndarray, origin: np.ndarray
) -> np.ndarray:
    """Return which objects have a voxel in the trusted box (start, stop) of a tile."""
    reach = ((found.starts < trusted[1]) & (found.stops > trusted[0])).all(1)
    below, above = found.starts < trusted[0], found.stops > trusted[1]
    # One that leaves the box at one face has its last voxel inside; others may go around it.
    around = reach & ((below | above).sum(1) + (below & above).any(1) > 1)
    if around.any():
        box = tuple(slice(a, b) for a, b in (trusted - origin).T)
        reach[around] = np.isin(found.ids[around], label_arrays.ids_of(labels[box]))
    return reach


def all_nodes(layout: Layout, read: Read) -> Nodes:
    """Return the nodes of all tiles; each tile is read once, as a whole."""
    near = _neighbours(layout)
    parts = [
        nodes_of_tile(read(tile, layout.window(tile)), layout, tile, near[tile])
        for tile in range(len(layout))
    ]
    return _joined(Nodes, parts)


def all_matches(
    layout: Layout, read: Read, nodes: Nodes, similarity: Similarity | None = None
) -> tuple[Matches, Covers]:
    """Return the candidate links of all neighbours, and which nodes lie on which others.

    Of the nodes that share ground with a node, only its best match is a candidate. `similarity`
    weighs the candidates against each other; whether a link is accepted it does not decide.
    """
    overlapping = _shared_by_tiles(layout, read, nodes)
    meeting = _shared_by_faces(layout, read, nodes)
    same = _matches(overlapping, overlapping.everywhere, None, at_face=False)
    parts = [
        _rows(same, same.iou == 1),  # the same voxels: one object, wherever they lie
        _matches(overlapping, overlapping.trusted, similarity, at_face=False),
        _matches(meeting, meeting.everywhere, similarity, at_face=True),
    ]
    return _once(_joined(Matches, parts)), _covers(nodes, overlapping)


@dataclass(frozen=True)
class _Shared:
    """How many voxels nodes of two tiles share; -1 stands for the background.

    Attributes
    ----------
    pair : int64 array
        Which two tiles.
    nodes : int64 array, shape (2, n)
    everywhere, trusted : int64 arrays
        Voxels, and those of them where both tiles are trusted.
    """

    pair: np.ndarray
    nodes: np.ndarray
    everywhere: np.ndarray
    trusted: np.ndarray

    def group(self, side: int) -> np.ndarray:
        """Return a number per row for what is a node of one side, or background, in its pair."""
        values = self.nodes[side] + 1
        return self.pair * (values.max(initial=0) + 1) + values


def _shared_by_tiles(layout: Layout, read: Read, nodes: Nodes) -> _Shared:
    found = []
    for one, other in layout.overlaps().tolist():
        box = intersection(layout.window(one), layout.window(other))
        both = intersection(layout.trusted(one), layout.trusted(other))
        nothing = (slice(0, 0),) * len(box)
        inner = nothing if both is None else shift(both, [side.start for side in box])
        found.append((one, other, *pairs.count(read(one, box), read(other, box), inner)))
    return _of_nodes(nodes, found)


def _shared_by_faces(layout: Layout, read: Read, nodes: Nodes) -> _Shared:
    found = []
    near = _neighbours(layout)
    for (one, other), axis in zip(*(some.tolist() for some in layout.faces()), strict=True):
        boxes = layout.facing(one, other, axis)
        planes = [read(one, boxes[0]), read(other, boxes[1])]
        # What a third tile sees on both sides of the face, its overlaps tell.
        ends = [box[axis].start for box in boxes]
        across = [slice(side.start, side.stop) for side in boxes[0]]
        across[axis] = slice(min(ends), max(ends) + 1)
        for third in near[one]:
            part = intersection(layout.window(third), tuple(across))
            if part is not None and part[axis] == across[axis]:
                place = list(shift(part, [side.start for side in across]))
                place[axis] = slice(0, 1)
                planes = [plane.copy() for plane in planes]
                planes[0][tuple(place)] = 0
                planes[1][tuple(place)] = 0
        found.append((one, other, *pairs.count(*planes)))
    return _of_nodes(nodes, found)


def _neighbours(layout: Layout) -> list[list[int]]:
    """Return, per tile, those that share voxels with it."""
    near: list[list[int]] = [[] for _ in range(len(layout))]
    for one, other in layout.overlaps().tolist():
        near[one].append(other)
        near[other].append(one)
    return near


def _of_nodes(nodes: Nodes, found: Sequence[tuple[int, int, np.ndarray, np.ndarray]]) -> _Shared:
    """Return the counts of pairs of labels as those of pairs of nodes."""
    if not found:
        nothing = np.zeros(0, dtype=np.int64)
        return _Shared(nothing, np.zeros((2, 0), dtype=np.int64), nothing, nothing)
    indices = [
        np.where(
            keys > 0,
            np.stack([nodes.index(one, keys[:, 0]), nodes.index(other, keys[:, 1])], 1),
            -1,
        )
        for one, other, keys, _ in found
    ]
    counts = np.concatenate([some for *_, some in found])
    return _Shared(
        pair=np.repeat(np.arange(len(found)), [len(some) for some in indices]),
        nodes=np.ascontiguousarray(np.concatenate(indices).T),
        everywhere=counts[:, 0],
        trusted=counts[:, 1],
    )


def _once(matches: Matches) -> Matches:
    """Return the matches without repeated pairs; of these, the one of the largest IoU stays."""
    order = np.lexsort((-matches.iou, matches.other, matches.one))
    pairs = np.stack([matches.one[order], matches.other[order]])
    new = np.ones(len(order), dtype=bool)
    new[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(0)
    return _rows(matches, order[new])


def _rows(matches: Matches, rows: np.ndarray) -> Matches:
    return Matches(*(getattr(matches, field.name)[rows] for field in fields(Matches)))


def similarity_of(vectors: np.ndarray) -> Similarity:
    """Return how alike nodes are by their vectors, (n, c); of one number each, by its ratio."""

    def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        a, b = vectors[one], vectors[other]
        if vectors.shape[1] == 1:
            low, high = np.minimum(a, b)[:, 0], np.maximum(a, b)[:, 0]
            return np.divide(low, high, out=np.ones(len(low)), where=high > 0).clip(0, 1)
        length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.divide((a * b).sum(1), length, out=np.ones(len(a)), where=length > 0)
        return (1 + cosine.clip(-1, 1)) / 2

    return similarity


def _covers(nodes: Nodes, shared: _Shared) -> Covers:
    both = (shared.nodes >= 0).all(0)
    one, other = shared.nodes[:, both]
    node, by = np.concatenate([one, other]), np.concatenate([other, one])
    missed = []
    for side in range(2):
        some = (shared.nodes[side] >= 0) & (shared.trusted > 0)
        empty = shared.nodes[1 - side][some] < 0
        _, first, place = np.unique(
            shared.group(side)[some], return_index=True, return_inverse=True
        )
        nothing = np.bincount(place, ~empty, len(first)) == 0
        missed.append(shared.nodes[side][some][first[nothing]])
    share = np.tile(shared.everywhere[both], 2) / nodes.area[node]
    return Covers(node, by, share, np.unique(np.concatenate(missed)))


def _matches(
    found: _Shared, voxels: np.ndarray, similarity: Similarity | None, at_face: bool
) -> Matches:
    """Return the pairs of nodes in which at least one is the other's best match."""
    areas, groups = [], []
    for side in range(2):
        groups.append(np.unique(found.group(side), return_inverse=True)[1])
        areas.append(np.bincount(groups[-1], voxels)[groups[-1]])
    both = (found.nodes >= 0).all(0) & (voxels > 0)
    first, second = found.nodes[:, both]
    shared, one_area, other_area = voxels[both], areas[0][both], areas[1][both]
    iou = shared / (one_area + other_area - shared)
    weight = iou if similarity is None else iou * similarity(first, second)
    best = _best(groups[0][both], weight, second), _best(groups[1][both], weight, first)
    kept = best[0] | best[1]
    inside = shared / np.minimum(one_area, other_area)
    return Matches(
        one=first[kept],
        other=second[kept],
        shared=shared[kept],
        iou=iou[kept],
        inside=inside[kept],
        mutual=(best[0] & best[1])[kept],
        at_face=np.full(np.count_nonzero(kept), at_face),
    )


def _best(group: np.ndarray, weight: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Return which rows have the largest weight of their group, of equal ones the first."""
    order = np.lexsort((partner, -weight, group))
    first = np.ones(len(order), dtype=bool)
    first[1:] = group[order][1:] != group[order][:-1]
    best = np.zeros(len(order), dtype=bool)
    best[order[first]] = True
    return best


def _joined(kind: type, parts: Sequence) -> object:
    """Return tables of one kind as one."""
    names = [field.name for field in fields(kind)]
    return kind(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
