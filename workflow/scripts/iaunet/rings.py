"""Exact outlines of a mask: polygons with holes whose vertices are corners of pixels."""

from collections.abc import Iterator

import numpy as np
from numba import njit
from scipy import ndimage

Polygon = list[np.ndarray]
"""Rings, (n, 2) of x and y, each open and simple: the outer one, then those of the holes."""


def polygons(mask: np.ndarray) -> list[Polygon]:
    """Return the outlines of a 2D mask, one polygon per piece that hangs together by sides.

    Pixel (y, x) covers the square from (x, y) to (x + 1, y + 1). A polygon is valid as OGC and
    GeoJSON have it: rings touch one another in single points only and no ring touches itself.
    Outer rings have a positive area by the shoelace formula, holes a negative one; there are
    only vertices where an outline turns.

    Parameters
    ----------
    mask : 2D array, bool

    Returns
    -------
    list of polygons, in raster order of their first pixel

    Examples
    --------
    >>> [ring.tolist() for ring in polygons(np.array([[True, True]]))[0]]
    [[[0, 0], [2, 0], [2, 1], [0, 1]]]
    """
    pieces, n_pieces = ndimage.label(np.pad(mask, 1))
    found: list[Polygon] = [[] for _ in range(n_pieces)]
    points, ends, owners = _trace(pieces)
    start = 0
    for end, owner in zip(ends.tolist(), owners.tolist(), strict=True):
        found[owner - 1].append(points[start:end])
        start = end
    return [sorted(rings, key=is_hole) for rings in found]


def is_hole(ring: np.ndarray) -> bool:
    """Tell whether a ring of `polygons` goes around a hole."""
    x, y = ring.astype(np.int64).T
    return bool((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0)


def filled(found: list[Polygon], shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of polygons with vertices at corners of pixels: the inverse of `polygons`.

    A pixel is inside where an odd number of upright sides lies to its left.
    """
    crossings = np.zeros((shape[0], shape[1] + 1), np.int32)
    for ring in (ring for polygon in found for ring in polygon):
        for (x0, y0), (x1, y1) in _sides(ring):
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


def _sides(ring: np.ndarray) -> Iterator[tuple[list[int], list[int]]]:
    points = np.asarray(ring).astype(np.int64).tolist()
    yield from zip(points, [*points[1:], points[0]], strict=True)


@njit(cache=True, nogil=True)
def _trace(pieces):
    """Return the vertices of all rings, where each ring ends and which piece it belongs to.

    `pieces` is 0 along the border. The walk keeps its piece on the right hand. Where two pixels
    touch by a corner only it stays with the one it is at, so different pieces are never joined,
    and a ring that meets a vertex for the second time is cut there in two.
    """
    height, width = pieces.shape
    n_corners = 0
    for y in range(1, height):
        for x in range(1, width):
            a, b = pieces[y - 1, x - 1] > 0, pieces[y - 1, x] > 0
            c, d = pieces[y, x - 1] > 0, pieces[y, x] > 0
            n = int(a) + int(b) + int(c) + int(d)
            if n == 1 or n == 3:
                n_corners += 1
            elif n == 2 and a == d:
                n_corners += 2
    points = np.empty((n_corners, 2), np.int32)
    ends = np.empty(n_corners // 4, np.int64)
    owners = np.empty(n_corners // 4, np.int64)
    stack = np.empty((n_corners, 2), np.int32)
    place = np.zeros((height, width), np.int32)  # of a corner in the stack, from 1 on
    seen = np.zeros((height, width), np.bool_)  # upper sides
    step_y, step_x = (0, 1, 0, -1), (1, 0, -1, 0)
    n_points, n_rings = 0, 0
    for first_y in range(1, height):
        for first_x in range(1, width):
            is_upper = pieces[first_y, first_x] > 0 and pieces[first_y - 1, first_x] == 0
            if not is_upper or seen[first_y, first_x]:
                continue
            y, x, way, size = first_y, first_x, 0, 0
            while True:
                # At the corner (y, x), about to go along `way`, after a turn.
                at = place[y, x]
                if at:
                    for k in range(at - 1, size):
                        points[n_points] = stack[k]
                        n_points += 1
                        if k >= at:
                            place[stack[k, 1], stack[k, 0]] = 0
                    ends[n_rings], owners[n_rings] = n_points, pieces[first_y, first_x]
                    n_rings += 1
                    size = at
                else:
                    stack[size, 0], stack[size, 1] = x, y
                    size += 1
                    place[y, x] = size
                turned = way
                while turned == way:
                    if way == 0:
                        seen[y, x] = True
                    y, x = y + step_y[way], x + step_x[way]
                    # The two pixels ahead, on the right and on the left hand.
                    right_y, right_x = y - (way == 2 or way == 3), x - (way == 1 or way == 2)
                    left_y, left_x = y - (way == 0 or way == 3), x - (way == 2 or way == 3)
                    if pieces[right_y, right_x] == 0:
                        turned = (way + 1) % 4
                    elif pieces[left_y, left_x] > 0:
                        turned = (way + 3) % 4
                way = turned
                if y == first_y and x == first_x and way == 0:
                    break
            for k in range(size):
                points[n_points] = stack[k]
                n_points += 1
                place[stack[k, 1], stack[k, 0]] = 0
            ends[n_rings], owners[n_rings] = n_points, pieces[first_y, first_x]
            n_rings += 1
    return points[:n_points] - 1, ends[:n_rings], owners[:n_rings]
