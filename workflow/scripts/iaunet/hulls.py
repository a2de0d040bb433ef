"""How many voxels the convex hull of an object has, as scikit-image counts them.

A voxel is the centres of its faces: a hull goes half a voxel beyond the outermost voxels.
Places are therefore counted in halves of a voxel, in whole numbers.
"""

import math

import numpy as np
from numba import njit
from scipy.spatial import ConvexHull, QhullError

from iaunet.grid import volume


def hull_size_px(mask: np.ndarray) -> int:
    """Return the number of voxels in the convex hull of a mask; 0 when a 3D hull is flat.

    The voxels that ``skimage.morphology.convex_hull_image`` finds, many times as fast: it
    tests each voxel against each facet, where one interval per row tells the same.
    """
    end = np.array(volume(mask).shape)
    first, last = row_ends(volume(mask), True, 0 * end, end)
    if mask.ndim == 2:
        return int(polygon_size(first, last))
    row = np.flatnonzero(first <= last)
    place = np.stack(np.unravel_index(row, mask.shape[:2]), axis=1)
    corners = np.concatenate([np.column_stack([place, side[row]]) for side in (first, last)])
    try:
        hull = ConvexHull(corners)
    except QhullError:
        return 0
    corners = hull.points[hull.vertices]
    # In halves, to name each place once, since repeated points can trouble qhull.
    faces = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)]) + 1
    halves = (2 * corners.astype(int)[:, None] + faces).reshape(-1, 3)
    box = tuple(2 * length + 1 for length in mask.shape)
    places = np.unravel_index(np.unique(np.ravel_multi_index(tuple(halves.T), box)), box)
    return _count_inside(ConvexHull((np.stack(places, axis=1) - 1) / 2).equations, mask.shape)


@njit(cache=True, nogil=True)
def row_ends(labels, name, start, stop):
    """Return the first and last voxel of an object in each row of a box, from the box's start.

    They span the same hull as all voxels. `labels` has three axes; in a row without the object
    the first is behind the last.
    """
    depth, height, length = stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]
    first = np.full(depth * height, length)
    last = np.full(depth * height, -1)
    for z in range(depth):
        for y in range(height):
            row, line = z * height + y, labels[start[0] + z, start[1] + y, start[2] : stop[2]]
            for x in range(length):
                if line[x] == name:
                    first[row] = x
                    break
            for x in range(length - 1, first[row] - 1, -1):
                if line[x] == name:
                    last[row] = x
                    break
    return first, last


@njit(cache=True, nogil=True)
def polygon_size(first, last):
    """Count the pixels in the convex hull of a 2D object from the ends of its rows.

    A pixel on the outline of the hull counts.
    """
    rows = np.flatnonzero(first <= last)
    if len(rows) == 0:
        return 0
    first, last = first[rows[0] : rows[-1] + 1], last[rows[0] : rows[-1] + 1]
    lines = 2 * len(first) + 1
    outmost = np.full((2, lines), -(1 << 62))
    for row in range(len(first)):
        if first[row] > last[row]:
            continue
        for side, end in enumerate((-first[row], last[row])):
            at = 2 * row + 1
            outmost[side, at] = max(outmost[side, at], 2 * end + 1)
            for line in (at - 1, at + 1):
                outmost[side, line] = max(outmost[side, line], 2 * end)
    left, right = _farthest(outmost[0]), _farthest(outmost[1])
    size = 0
    for row in range(len(first)):
        size += max(0, left[row] + right[row] + 1)
    return size


@njit(cache=True, nogil=True)
def _farthest(outmost):
    """Return the last pixel of each row on this side of the hull's outline.

    Andrew's monotone chain over the half lines, of which the odd ones are rows.
    """
    chain = np.empty(len(outmost), dtype=np.int64)
    size = 0
    for line in range(len(outmost)):
        if outmost[line] == -(1 << 62):
            continue
        while size >= 2:
            a, b = chain[size - 2], chain[size - 1]
            rise = (outmost[b] - outmost[a]) * (line - a)
            if rise > (outmost[line] - outmost[a]) * (b - a):
                break
            size -= 1
        chain[size] = line
        size += 1
    pixel = np.empty(len(outmost) // 2, dtype=np.int64)
    k = 0
    for row in range(len(pixel)):
        line = 2 * row + 1
        while chain[k + 1] < line:
            k += 1
        a, b = chain[k], chain[k + 1]
        rise = (outmost[b] - outmost[a]) * (line - a)
        pixel[row] = (outmost[a] * (b - a) + rise) // (2 * (b - a))
    return pixel


@njit(cache=True, nogil=True)
def _count_inside(planes: np.ndarray, shape: tuple[int, int, int]) -> int:
    """Count the lattice points of a box that lie below all planes, with skimage's tolerance."""
    count = 0
    for z in range(shape[0]):
        for y in range(shape[1]):
            low, high = 0, shape[2] - 1
            for k in range(len(planes)):
                slope = planes[k, 2]
                room = 1e-10 - (planes[k, 0] * z + planes[k, 1] * y + planes[k, 3])
                if abs(slope) < 1e-12:
                    if room <= 0:
                        high = -1
                elif slope > 0:
                    high = min(high, math.ceil(min(room / slope, shape[2])) - 1)
                else:
                    low = max(low, math.floor(max(room / slope, -1)) + 1)
                if low > high:
                    break
            count += max(0, high - low + 1)
    return count
