"""Cases of the benchmark: a truth is cut into tiles, whose labels are true or go wrong."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

import truths
from iaunet.grid import Box, grow

IDEAL, BORDER, INCONSISTENT = "ideal", "border", "inconsistent"
CONDITIONS = (IDEAL, BORDER, INCONSISTENT)
WRONG_SHARE = {BORDER: 0.5, INCONSISTENT: 0.3}
"""Share of the objects that could go wrong and do."""
LARGER_PX = 2


@dataclass(frozen=True)
class Cut:
    """How a truth is cut: cores that partition it, or have gaps, and windows around them."""

    name: str
    core_px: tuple[int, ...]
    halo_px: int
    gap_px: int = 0

    @property
    def border_px(self) -> int:
        """Return how near to a cut face of its window a segmenter errs."""
        return -(-self.halo_px // 3)

    def boxes(self, shape: Sequence[int]) -> tuple[list[Box], list[Box]]:
        """Return the windows and the cores, in raster order."""
        steps = [
            range(0, n, core + self.gap_px) for n, core in zip(shape, self.core_px, strict=True)
        ]
        cores = [
            tuple(
                slice(at, min(n, at + core))
                for at, core, n in zip(corner, self.core_px, shape, strict=True)
            )
            for corner in itertools.product(*steps)
        ]
        return [grow(core, (self.halo_px,) * len(shape), shape) for core in cores], cores


@dataclass(frozen=True)
class Truth:
    """An untiled truth and how it is cut; `draw` makes it from the folder of data and a seed."""

    name: str
    draw: Callable[[Path, int], np.ndarray]
    cuts: tuple[Cut, ...]
    is_real: bool = False


@dataclass(frozen=True)
class Case:
    """What a merger gets, and what it should give back; `truth` is 0 where no tile looks."""

    truth: np.ndarray
    windows: list[Box]
    cores: list[Box]
    tiles: list[np.ndarray]
    border_px: int


def cuts(core_px: Sequence[int], halo_px: int) -> tuple[Cut, ...]:
    """Return the cuts of one truth: overlapping tiles, barely overlapping, abutting, with gaps."""
    core = tuple(core_px)
    return (
        Cut(f"overlap {2 * halo_px}", core, halo_px),
        Cut("overlap 2", core, 1),
        Cut("abutting", core, 0),
        Cut("gap 3", core, 0, gap_px=3),
    )


def _drawn(kind: Callable, shape: Sequence[int], **options: object) -> Callable:
    return lambda data, seed: kind(shape, np.random.default_rng(seed), **options)


def _real(name: str) -> Callable:
    return lambda data, seed: truths.read(data, name)


FLAT, DEEP = (640, 640), (96, 192, 192)
FLAT_CUTS, DEEP_CUTS = cuts((128, 128), 32), cuts((48, 64, 64), 24)
TRUTHS = (
    Truth("nuclei 2D, sparse", _drawn(truths.nuclei, FLAT, diameter_px=22, dense=False), FLAT_CUTS),
    Truth("nuclei 2D, dense", _drawn(truths.nuclei, FLAT, diameter_px=22, dense=True), FLAT_CUTS),
    Truth("tissue 2D", _drawn(truths.tissue, FLAT, cell_px=20), FLAT_CUTS),
    Truth("mixed 2D", _drawn(truths.tissue, FLAT, cell_px=20, large_px=50), FLAT_CUTS),
    Truth("nuclei 3D, sparse", _drawn(truths.nuclei, DEEP, diameter_px=18, dense=False), DEEP_CUTS),
    Truth("nuclei 3D, dense", _drawn(truths.nuclei, DEEP, diameter_px=18, dense=True), DEEP_CUTS),
    Truth("tissue 3D", _drawn(truths.tissue, DEEP, cell_px=18), DEEP_CUTS),
    Truth("mixed 3D", _drawn(truths.tissue, DEEP, cell_px=18, large_px=36), DEEP_CUTS),
    *(
        Truth(name, _real(name), cuts((40, 40, 40), 12), is_real=True)
        for name in ("gonuclear 1137", "gonuclear 1139", "gonuclear 1170")
    ),
    Truth("plant cells", _real("plant cells"), cuts((64, 128, 128), 24), is_real=True),
    Truth("connectomics", _real("connectomics"), cuts((128, 128, 128), 16), is_real=True),
)


def case(truth: np.ndarray, cut: Cut, condition: str, seed: int) -> Case:
    """Cut a truth into tiles that err as `condition` says; all chance comes from the seed."""
    windows, cores = cut.boxes(truth.shape)
    rng = np.random.default_rng([seed, CONDITIONS.index(condition)])
    tiles = [truth[window].astype(np.int64) for window in windows]
    if condition == BORDER:
        for tile, window in zip(tiles, windows, strict=True):
            err_near_faces(tile, border_zone(window, truth.shape, cut.border_px), rng)
    elif condition == INCONSISTENT:
        err_in_one_tile(tiles, crossing(truth, cores), rng)
    seen = np.zeros(truth.shape, dtype=bool)
    for window in windows:
        seen[window] = True
    return Case(
        truth=truth if seen.all() else truth * seen,
        windows=windows,
        cores=cores,
        tiles=[shuffled(tile, rng) for tile in tiles],
        border_px=cut.border_px,
    )


def shuffled(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the labels as 1..n, uint32, in an order that tells nothing."""
    flat = labels.ravel()
    present = np.zeros(flat.max(initial=0) + 1, dtype=bool)
    present[flat] = True
    present[0] = False
    new = np.zeros(len(present), dtype=np.uint32)
    new[present] = rng.permutation(np.count_nonzero(present)) + 1
    return new[flat].reshape(labels.shape)


def border_zone(window: Box, shape: Sequence[int], border_px: int) -> np.ndarray:
    """Return which voxels of a window lie near a face of it that is no face of the image."""
    zone = np.zeros([side.stop - side.start for side in window], dtype=bool)
    for axis, (side, length) in enumerate(zip(window, shape, strict=True)):
        along = np.moveaxis(zone, axis, 0)
        if side.start > 0:
            along[:border_px] = True
        if side.stop < length and border_px:
            along[-border_px:] = True
    return zone


def err_near_faces(labels: np.ndarray, zone: np.ndarray, rng: np.random.Generator) -> None:
    """Erode, split and drop what objects have in the zone, and add pieces there; in place."""
    ids = np.unique(labels[zone])
    ids = ids[ids > 0]
    boxes = ndimage.find_objects(labels)
    new = len(boxes) + 1
    for label in ids[rng.random(len(ids)) < WRONG_SHARE[BORDER]].tolist():
        box = boxes[label - 1]
        mine, near = labels[box] == label, zone[box]
        action = rng.integers(3)
        if action == 0:
            labels[box][mine & near & ~_eroded(mine)] = 0
        elif action == 1:
            labels[box][mine & near & _one_side(mine & near, rng)] = new
            new += 1
        else:
            labels[box][mine & near] = 0
    for place in rng.permutation(np.argwhere(zone))[: -(-len(ids) // 10)]:
        ball = _ball(place, rng.uniform(1.5, 3.5), labels.shape)
        inside = ball[1] & zone[ball[0]]
        labels[ball[0]][inside] = new
        new += 1


def crossing(truth: np.ndarray, cores: Sequence[Box]) -> dict[int, list[int]]:
    """Return, per object that lies in several cores, which these are."""
    found: dict[int, list[int]] = {}
    for core, box in enumerate(cores):
        for label in np.unique(truth[box]).tolist():
            if label:
                found.setdefault(label, []).append(core)
    return {label: where for label, where in sorted(found.items()) if len(where) > 1}


def err_in_one_tile(
    tiles: list[np.ndarray],
    objects: dict[int, list[int]],
    rng: np.random.Generator,
) -> None:
    """Let one tile split, join, miss or enlarge an object that several have in their cores.

    In place; voxels of a tile are the ids of the truth, or larger where they are new.
    """
    labels = np.array(list(objects), dtype=np.int64)
    chosen = labels[rng.random(len(labels)) < WRONG_SHARE[INCONSISTENT]].tolist()
    new = max((int(tile.max()) for tile in tiles), default=0) + 1
    for label in chosen:
        tile = tiles[objects[label][rng.integers(len(objects[label]))]]
        action = rng.integers(4)
        where = np.nonzero(tile == label)
        if not len(where[0]):
            continue  # an error of a neighbour covers it
        middle = tuple(slice(int(side.min()), int(side.max()) + 1) for side in where)
        box = grow(middle, (LARGER_PX + 1,) * tile.ndim, tile.shape)
        mine = tile[box] == label
        if action == 0:
            tile[box][mine & _one_side(mine, rng)] = new
            new += 1
        elif action == 1:
            tile[box][mine] = 0
        elif action == 2:
            tile[box][ndimage.binary_dilation(mine, iterations=LARGER_PX)] = label
        else:
            _join_neighbour(tile, box, mine, label)


def _join_neighbour(tile: np.ndarray, box: Box, mine: np.ndarray, label: int) -> None:
    """Give the neighbour with the longest common border the label; without one, enlarge."""
    around = ndimage.binary_dilation(mine, iterations=LARGER_PX)
    near, n_voxels = np.unique(tile[box][around & ~mine], return_counts=True)
    n_voxels, near = n_voxels[near > 0], near[near > 0]
    if len(near):
        tile[tile == near[n_voxels.argmax()]] = label
    else:
        tile[box][around] = label


def _eroded(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_erosion(mask, iterations=LARGER_PX)


def _one_side(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return which voxels of the array lie on one side of a plane through the mask's centre."""
    direction = rng.normal(size=mask.ndim)
    centre = [side.mean() for side in np.nonzero(mask)]
    along = [
        (np.arange(length) - middle) * step
        for length, middle, step in zip(mask.shape, centre, direction, strict=True)
    ]
    return sum(np.meshgrid(*along, indexing="ij", sparse=True)) > 0


def _ball(place: np.ndarray, radius: float, shape: Sequence[int]) -> tuple[Box, np.ndarray]:
    point = tuple(slice(int(at), int(at) + 1) for at in place)
    box = grow(point, (int(radius),) * len(shape), shape)
    squares = [(np.arange(s.start, s.stop) - at) ** 2 for s, at in zip(box, place, strict=True)]
    return box, sum(np.meshgrid(*squares, indexing="ij", sparse=True)) <= radius**2
