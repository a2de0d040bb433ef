"""Labels of tiles, from any segmenter -> one identity per object.

Nodes (what a label shows in one tile) that are each other's best match are one object, as in
``cluster_tools``; so are the pieces of an object that meet outside of the tile that cut them. An
object that some tile sees as a whole is painted as that tile drew it, if possible the tile that
owns its centre (the rule of StarDist's ``predict_instances_big``); any other is painted tile by
tile, each the voxels it owns. Where all tiles agree, this is the untiled result, for objects of
any size. Where they do not, what tells two objects apart counts unless more tiles see one, what
a tile shows only near a face that cuts its view does not count, and what only one tile saw is
kept when nothing of the others lies there; what is not painted is said in a table.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from iaunet import layout as layouts
from iaunet import pairs
from iaunet.grid import Box, shift
from iaunet.matching import Covers, Matches, Nodes, all_matches, all_nodes
from iaunet.painting import FILL, PART, SILENT, WHOLE, Numbers, paint, renumbered

LEAST_IOU = 0.2
"""Mutual best matches that share less of their common ground are two objects."""
LEAST_FACE_IOU = 0.3
"""The same of two cut faces (BiaPy's value)."""
MOSTLY = 0.5

LINKED = "linked"
REFUSED = "refused"
KEPT = "kept"
OVERRULED = "overruled"
OPEN = "open"

Touching = Callable[[int], set[tuple[int, int]]]
"""Pairs of labels of a tile that touch each other, the lower label first."""


@dataclass(frozen=True)
class Decision:
    """What becomes of nodes and matches.

    Attributes
    ----------
    group : int64 array, one per node
        The object it belongs to, 0..n-1.
    role : uint8 array, one per node
    verdict : array of str, one per node
        ``kept``: only one tile saw it, and nothing of the others lies there. ``overruled``: only
        one tile saw it, and objects of the others lie there, or that tile is not trusted there;
        it is not drawn. ``open``: it ends at the face of its tile and goes on nowhere. Else empty.
    linked, refused : bool arrays, one per match
        Refused: it would have made one object of two that touch each other in one tile, or that
        one tile sees as a whole.
    """

    group: np.ndarray
    role: np.ndarray
    verdict: np.ndarray
    linked: np.ndarray
    refused: np.ndarray


def decide(nodes: Nodes, matches: Matches, covers: Covers, touching: Touching) -> Decision:
    """Return which nodes are one object and who draws it.

    A match is a link when it is mutual and its IoU large enough, or when a node that its tile
    cuts lies mostly inside its match: pieces of an object that meet outside of their tile.
    """
    least = np.where(matches.at_face, LEAST_FACE_IOU, LEAST_IOU)
    piece = ~matches.mutual & (matches.inside >= MOSTLY)
    piece &= ~nodes.whole[matches.one] & ~nodes.whole[matches.other]
    wanted = (matches.mutual & (matches.iou >= least)) | piece
    group = _components(len(nodes.tile), matches.one[wanted], matches.other[wanted])
    doubled = _seen_twice(group, nodes.tile)
    linked = wanted & ~doubled[group[matches.one]]
    contested = np.flatnonzero(wanted & doubled[group[matches.one]])
    linked[_without_conflicts(nodes, matches, contested, touching)] = True
    group = _components(len(nodes.tile), matches.one[linked], matches.other[linked])
    apart = _beside_drawer(nodes, group, covers)
    linked &= apart[matches.one] == apart[matches.other]
    group = _components(len(nodes.tile), matches.one[linked], matches.other[linked])
    role, verdict = _roles(nodes, group, covers)
    return Decision(group, role, verdict, linked, wanted & ~linked)


def _components(n_nodes: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(n_nodes, n_nodes))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _seen_twice(group: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """Return, per group, whether two of its nodes are of one tile."""
    order = np.lexsort((tile, group))
    same = (group[order][1:] == group[order][:-1]) & (tile[order][1:] == tile[order][:-1])
    found = np.zeros(group.max(initial=-1) + 1, dtype=bool)
    found[group[order][1:][same]] = True
    return found


def _without_conflicts(
    nodes: Nodes, matches: Matches, contested: np.ndarray, touching: Touching
) -> list[int]:
    """Return the matches that join nothing that tiles tell apart, the best ones first.

    Those who see two pieces as one object outvote those who tell them apart when they are more.
    """
    strength = matches.iou[contested]
    order = np.lexsort(
        (matches.other[contested], matches.one[contested], -strength, ~matches.mutual[contested])
    )
    partners: dict[int, list[int]] = {}
    voting = contested[~matches.at_face[contested]]  # a face shows what touches, not what is one
    for one, other in zip(matches.one[voting], matches.other[voting], strict=True):
        partners.setdefault(int(one), []).append(int(other))
        partners.setdefault(int(other), []).append(int(one))
    members: dict[int, list[int]] = {}
    name: dict[int, int] = {}
    kept = []
    for match in contested[order].tolist():
        pair = int(matches.one[match]), int(matches.other[match])
        one, other = (name.setdefault(node, node) for node in pair)
        for node in (one, other):
            members.setdefault(node, [node])
        if one != other:
            against = _telling_apart(nodes, members[one], members[other], touching)
            if against and len(_joining(nodes, members, one, other, partners) - against) <= max(
                1, len(against)
            ):
                continue
            for node in members[other]:
                name[node] = one
            members[one] += members.pop(other)
        kept.append(match)
    return kept


def _joining(
    nodes: Nodes,
    members: dict[int, list[int]],
    one: int,
    other: int,
    partners: dict[int, list[int]],
) -> set[int]:
    """Return the tiles of the nodes of either group that match a node of the other."""
    found = set()
    for group, opposite in ((one, other), (other, one)):
        there = set(members[opposite])
        for node in members[group]:
            if not there.isdisjoint(partners.get(node, ())):
                found.add(int(nodes.tile[node]))
    return found


def _telling_apart(
    nodes: Nodes, some: Sequence[int], others: Sequence[int], touching: Touching
) -> set[int]:
    """Return the tiles that have nodes of both groups and see that these are two objects."""
    by_tile: dict[int, list[int]] = {}
    for node in some:
        by_tile.setdefault(int(nodes.tile[node]), []).append(node)
    found = set()
    for other in others:
        tile = int(nodes.tile[other])
        for one in by_tile.get(tile, ()):
            if not (nodes.trusted[one] and nodes.trusted[other]):
                continue
            pair = sorted((int(nodes.label[one]), int(nodes.label[other])))
            if (nodes.whole[one] and nodes.whole[other]) or tuple(pair) in touching(tile):
                found.add(tile)
    return found


def touching_labels(labels: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs of labels that share a face of a voxel, the lower label first.

    Examples
    --------
    >>> touching_labels(np.array([[4, 4, 0], [2, 0, 7]], dtype=np.uint8))
    {(2, 4)}
    """
    return set(map(tuple, pairs.touching(labels).tolist()))


def _roles(nodes: Nodes, group: np.ndarray, covers: Covers) -> tuple[np.ndarray, np.ndarray]:
    """Return who draws: of each group the best whole node, or all nodes their own voxels."""
    n_groups = group.max(initial=-1) + 1
    alone = np.bincount(group, minlength=n_groups)[group] == 1
    owned = np.zeros(n_groups, dtype=bool)
    owned[group[nodes.owned]] = True
    # What the owner of the place did not see: whole, or in a margin but not cut.
    stray = ~owned[group] & nodes.trusted & (nodes.whole | (nodes.entire & alone))
    whole = np.flatnonzero(nodes.whole | stray)
    order = whole[np.lexsort((-nodes.area[whole], ~nodes.owned[whole], group[whole]))]
    drawn, first = np.unique(group[order], return_index=True)
    role = np.full(len(group), PART, dtype=np.uint8)
    role[np.isin(group, drawn)] = SILENT
    role[order[first]] = WHOLE
    missed = np.zeros(n_groups, dtype=bool)
    missed[group[covers.missed]] = True
    role[missed[group] & (role == PART) & nodes.trusted] = FILL
    verdict = np.full(len(group), "", dtype=object)
    chosen = np.flatnonzero(stray & (role == WHOLE))
    hidden = _hidden(nodes, role, covers, chosen)
    role[hidden] = SILENT
    verdict[chosen[alone[chosen]]] = KEPT
    verdict[hidden] = OVERRULED
    single = (role == PART) & alone & ~owned[group]
    verdict[single & nodes.entire] = OVERRULED
    covered = _covered(nodes, covers, np.ones(len(covers.node), dtype=bool))
    verdict[(role % 2 == 1) & alone & ~nodes.entire & (covered <= MOSTLY)] = OPEN
    return role, verdict


def _beside_drawer(nodes: Nodes, group: np.ndarray, covers: Covers) -> np.ndarray:
    """Return the nodes that lie beside the whole node that draws their group.

    Such a group is a chain: a tile that sees two objects as one has linked them.
    """
    role, _ = _roles(nodes, group, covers)
    drawer = np.full(len(group), -1)
    drawer[group[role == WHOLE]] = np.flatnonzero(role == WHOLE)
    share = np.zeros(len(group))
    found = drawer[group[covers.node]] == covers.by
    share[covers.node[found]] = covers.share[found]
    return (drawer[group] >= 0) & (role == SILENT) & nodes.trusted & (share < LEAST_IOU)


def _hidden(nodes: Nodes, role: np.ndarray, covers: Covers, strays: np.ndarray) -> np.ndarray:
    """Return the strays that lie mostly on what others draw; of two strays the larger one draws."""
    draws = role != SILENT
    draws[strays] = False
    covered = _covered(nodes, covers, draws[covers.by])
    hidden = set(strays[covered[strays] > MOSTLY].tolist())
    waiting = np.zeros(len(role), dtype=bool)
    waiting[strays] = True
    on_stray = waiting[covers.node] & waiting[covers.by] & (covers.share > MOSTLY)
    node, by = covers.node[on_stray], covers.by[on_stray]
    for row in np.lexsort((by, node, -nodes.area[node])).tolist():
        rank = (nodes.area[by[row]], -by[row]) > (nodes.area[node[row]], -node[row])
        if rank and int(by[row]) not in hidden:
            hidden.add(int(node[row]))
    return np.array(sorted(hidden), dtype=np.int64)


def _covered(nodes: Nodes, covers: Covers, rows: np.ndarray) -> np.ndarray:
    """Return the largest share of each node that lies on nodes of one other tile."""
    n_tiles = nodes.tile.max(initial=0) + 1
    by_tile = covers.node[rows] * n_tiles + nodes.tile[covers.by[rows]]
    keys, place = np.unique(by_tile, return_inverse=True)
    covered = np.zeros(len(nodes.tile))
    np.maximum.at(covered, keys // n_tiles, np.bincount(place, covers.share[rows], len(keys)))
    return covered


def reconciled(
    tiles: Sequence[np.ndarray], starts: Sequence[Sequence[int]], **options: object
) -> np.ndarray:
    """Return one label array, uint32, from those of tiles that lie at `starts`.

    Parameters
    ----------
    options : of `iaunet.layout.layout`

    Examples
    --------
    >>> one, other = np.array([[1, 0, 2, 2]]), np.array([[5, 5, 5, 0]])
    >>> reconciled([one, other], [(0, 0), (0, 2)]).tolist()
    [[1, 0, 2, 2, 2, 0]]
    """
    tiles = [_unsigned(tile) for tile in tiles]
    placed = layouts.layout(starts, [tile.shape for tile in tiles], **options)

    def read(tile: int, box: Box) -> np.ndarray:
        return tiles[tile][shift(box, placed.starts[tile].tolist())]

    nodes = all_nodes(placed, read)
    matches, covers = all_matches(placed, read, nodes)
    touches = functools.cache(lambda tile: touching_labels(tiles[tile]))
    decision = decide(nodes, matches, covers, touches)
    whole = tuple(slice(0, length) for length in placed.shape)
    painted, _ = paint(whole, placed, read, nodes, decision.group, decision.role)
    numbers = Numbers(decision.group.max(initial=-1) + 1, placed.shape)
    numbers.add(painted, whole)
    return renumbered(painted, numbers.of_groups())


def _unsigned(labels: np.ndarray) -> np.ndarray:
    """Return labels as unsigned integers, without a copy where they have the same size."""
    if labels.dtype.kind == "i" and labels.min(initial=0) >= 0:
        return labels.view(labels.dtype.str.replace("i", "u"))
    if labels.dtype.kind != "u":
        raise ValueError(f"labels must be integers of 0 or more, got {labels.dtype}")
    return labels
