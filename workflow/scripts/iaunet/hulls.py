"""How many voxels the convex hull of an object has, as scikit-image counts them.

A voxel is the centres of its faces: a hull goes half a voxel beyond the outermost voxels.
Places are therefore counted in halves of a voxel, in whole numbers: voxel n is at 2 n + 1, and
all is exact. An object is known by the ends of its rows along x, which span the same hull.
"""

import numpy as np
from numba import njit

NOTHING = -(1 << 30)
"""In place of the outmost place on a line on which there is none."""

BESIDE, PLANE, SEEN = 3, 6, 10
"""Columns of facets, see `_facets`; of the plane z, y, x of its normal and the height of it."""
GONE = -2


@njit(cache=True, nogil=True)
def hull_size_px(labels, name, start, stop, ndim):
    """Return the number of voxels in the convex hull of an object; 0 when a 3D hull is flat.

    The voxels that ``skimage.morphology.convex_hull_image`` finds. `labels` has three axes, also
    when `ndim` is 2; the object is in the box from `start` to `stop`.
    """
    first, last = row_ends(labels, name, start, stop)
    if ndim == 2:
        return polygon_size(first, last)
    shape = stop[0] - start[0], stop[1] - start[1]
    return polyhedron_size(first.reshape(shape), last.reshape(shape))


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
    outmost = np.full((2, 2 * len(first) + 1), NOTHING)
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

    Of the half lines the odd ones are rows.
    """
    chain = np.empty(len(outmost), dtype=np.int64)
    _keep_corners(outmost, 0, 1, len(outmost), chain)
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
def _keep_corners(outmost, start, step, lines, chain):
    """Leave of the outmost places of parallel lines those that are corners of their hull.

    The lines are at `start`, `start + step` ... in `outmost`, which has one axis; the rest of it
    becomes NOTHING. `chain` becomes the numbers of the lines that are left. Andrew's monotone
    chain.
    """
    size, b, at_b = 0, 0, 0
    for line in range(lines):
        here = np.int64(outmost[start + line * step])
        if here == NOTHING:
            continue
        while size >= 2:
            a = chain[size - 2]
            at_a = np.int64(outmost[start + a * step])
            if (at_b - at_a) * (line - a) > (here - at_a) * (b - a):
                break
            outmost[start + b * step] = NOTHING
            b, at_b = a, at_a
            size -= 1
        chain[size], b, at_b = line, line, here
        size += 1


@njit(cache=True, nogil=True)
def polyhedron_size(first, last):
    """Count the voxels in the convex hull of a 3D object from the ends of its rows, (z, y).

    A voxel on the surface of the hull counts. 0 when all voxels lie in one plane.
    """
    if _is_flat(first, last):
        return 0
    points = _outmost_points(first, last)
    far = np.full((2, *first.shape), NOTHING)
    facets = _facets(points)
    for k in range(len(facets)):
        if facets[k, SEEN] != GONE and facets[k, PLANE + 2] != 0:
            _paint(points, facets[k], far)
    size = 0
    for z in range(far.shape[1]):
        for y in range(far.shape[2]):
            if far[0, z, y] != NOTHING:
                size += far[0, z, y] + far[1, z, y] + 1
    return size


@njit(cache=True, nogil=True)
def _is_flat(first, last):
    """Return whether all voxels lie in one plane."""
    known = 0
    az = ay = ax = bz = by = bx = nz = ny = nx = 0
    for z in range(first.shape[0]):
        for y in range(first.shape[1]):
            if first[z, y] > last[z, y]:
                continue
            for x in (first[z, y], last[z, y]):
                dz, dy, dx = z - az, y - ay, x - ax
                if known == 0:
                    az, ay, ax, known = z, y, x, 1
                elif known == 1:
                    bz, by, bx = dz, dy, dx
                    known += bz != 0 or by != 0 or bx != 0
                elif known == 2:
                    nz, ny, nx = by * dx - bx * dy, bx * dz - bz * dx, bz * dy - by * dz
                    known += nz != 0 or ny != 0 or nx != 0
                elif nz * dz + ny * dy + nx * dx != 0:
                    return False
    return True


@njit(cache=True, nogil=True)
def _outmost_points(first, last):
    """Return centres of faces of voxels, (n, 3), with all corners of the hull among them.

    The first six are those of the first voxel, before and behind it along z, y and x. The others
    follow by ascending place: of each line of halves the outmost two, and of these only the
    corners of the hulls of lines in a plane, for planes in four directions.
    """
    depth, height = 2 * first.shape[0] + 1, 2 * first.shape[1] + 1
    outmost = np.full((2, depth, height), NOTHING, dtype=np.int32)
    n = 6
    for side in range(2):
        lines = outmost[side]
        for row_z in range(first.shape[0]):
            for row_y in range(first.shape[1]):
                if first[row_z, row_y] > last[row_z, row_y]:
                    continue
                z, y = 2 * row_z + 1, 2 * row_y + 1
                end = 2 * last[row_z, row_y] + 1 if side else -2 * first[row_z, row_y] - 1
                lines[z, y] = max(lines[z, y], end + 1)
                lines[z - 1, y] = max(lines[z - 1, y], end)
                lines[z + 1, y] = end
                lines[z, y - 1] = max(lines[z, y - 1], end)
                lines[z, y + 1] = end
        lines = lines.ravel()
        chain = np.empty(max(depth, height), dtype=np.int64)
        for z in range(depth):
            _keep_corners(lines, z * height, 1, height, chain)
        for y in range(height):
            _keep_corners(lines, y, height, depth, chain)
        for z in range(depth):
            long = min(depth - z, height)
            _keep_corners(lines, z * height, height + 1, long, chain)
            _keep_corners(lines, (z + 1) * height - 1, height - 1, long, chain)
        for y in range(1, height):
            long = min(depth, height - y)
            _keep_corners(lines, y, height + 1, long, chain)
            _keep_corners(lines, height - 1 - y, height - 1, long, chain)
        for place in lines:
            n += place != NOTHING
    points = np.empty((n, 3), dtype=np.int64)
    row = 0
    while first.flat[row] > last.flat[row]:
        row += 1
    for k in range(6):
        points[k, 0], points[k, 1] = 2 * (row // first.shape[1]) + 1, 2 * (row % first.shape[1]) + 1
        points[k, 2] = 2 * first.flat[row] + 1
        points[k, k // 2] += 2 * (k % 2) - 1
    n = 6
    for z in range(depth):
        for y in range(height):
            for side in range(2):
                if outmost[side, z, y] != NOTHING:
                    points[n, 0], points[n, 1] = z, y
                    points[n, 2] = outmost[side, z, y] if side else -outmost[side, z, y]
                    n += 1
    return points


@njit(cache=True, nogil=True)
def _facets(points):
    """Return the convex hull of points as triangles, (n, 11), of which some are GONE.

    A row is three points, counter-clockwise from outside; the facets behind the sides that begin
    there; the plane; by which point the facet was looked at last, and whether from above.

    Points are added one by one: the facets that a point is above go, and each side of the hole
    becomes a facet with the point. A point above no facet is inside. The first six points are the
    corners of an octahedron, before and behind its centre along each axis.
    """
    facets = np.empty((2 * len(points), 11), dtype=np.int64)
    n, n_unused, n_new = _octahedron(points, facets), 0, 0
    unused, new = np.empty((2, len(facets)), dtype=np.int64)
    rim, stack = np.empty((len(facets), 3), dtype=np.int64), np.empty(len(facets), dtype=np.int64)
    at = np.empty(len(points), dtype=np.int64)
    for p in range(6, len(points)):
        # One that is behind all before it along z, y, x is above a facet of the last before it.
        start = -1
        for k in new[:n_new]:
            if _is_above(points, p, facets, k):
                start = k
                break
        k = 0
        while start < 0 and k < n:
            if facets[k, SEEN] != GONE and _is_above(points, p, facets, k):
                start = k
            k += 1
        if start < 0:
            continue
        n_gone, n_new = _look(points, p, start, facets, rim, stack, unused[n_unused:])
        n_unused += n_gone
        for k in range(n_new):
            if n_unused:
                n_unused -= 1
                new[k] = unused[n_unused]
            else:
                new[k] = n
                n += 1
            one, other, behind = rim[k]
            _set_facet(points, one, other, p, facets, new[k])
            facets[new[k], BESIDE] = behind
            side = 0
            while facets[behind, side] != other:
                side += 1
            facets[behind, BESIDE + side] = new[k]
            at[one] = new[k]
        for k in range(n_new):
            following = at[rim[k, 1]]
            facets[new[k], BESIDE + 1] = following
            facets[following, BESIDE + 2] = new[k]
    return facets[:n]


@njit(cache=True, nogil=True)
def _look(points, p, start, facets, rim, stack, gone):
    """Find the facets that a point is above, which are connected, from one of them.

    Returns
    -------
    int
        How many they are; their numbers are in `gone`.
    int
        How many sides the hole has. In `rim` are the points at which they begin and end, and the
        facets behind them.
    """
    n_gone, n_rim, size = 0, 0, 1
    stack[0], facets[start, SEEN] = start, 2 * p + 1
    while size:
        size -= 1
        k = stack[size]
        gone[n_gone] = k
        n_gone += 1
        for side in range(3):
            other = facets[k, BESIDE + side]
            if facets[other, SEEN] >> 1 != p:
                above = _is_above(points, p, facets, other)
                facets[other, SEEN] = 2 * p + above
                if above:
                    stack[size] = other
                    size += 1
            if not facets[other, SEEN] & 1:
                rim[n_rim, 0], rim[n_rim, 1] = facets[k, side], facets[k, (side + 1) % 3]
                rim[n_rim, 2] = other
                n_rim += 1
    for k in gone[:n_gone]:
        facets[k, SEEN] = GONE
    return n_gone, n_rim


@njit(cache=True, nogil=True)
def _octahedron(points, facets):
    """Write the facets between the first six points; return how many they are."""
    for k in range(8):
        z, y, x = k // 4, 2 + k // 2 % 2, 4 + k % 2
        if (k // 4 + k // 2 + k) % 2:
            _set_facet(points, z, y, x, facets, k)
            across = k ^ 1, k ^ 4, k ^ 2
        else:
            _set_facet(points, z, x, y, facets, k)
            across = k ^ 2, k ^ 4, k ^ 1
        for side in range(3):
            facets[k, BESIDE + side] = across[side]
    return 8


@njit(cache=True, nogil=True)
def _set_facet(points, a, b, c, facets, k):
    """Write the points and the plane of a facet."""
    (az, ay, ax), (bz, by, bx), (cz, cy, cx) = points[a], points[b], points[c]
    bz, by, bx, cz, cy, cx = bz - az, by - ay, bx - ax, cz - az, cy - ay, cx - ax
    nz, ny, nx = by * cx - bx * cy, bx * cz - bz * cx, bz * cy - by * cz
    facet = facets[k]
    facet[0], facet[1], facet[2] = a, b, c
    facet[PLANE], facet[PLANE + 1], facet[PLANE + 2] = nz, ny, nx
    facet[PLANE + 3] = nz * az + ny * ay + nx * ax
    facet[SEEN] = 0


@njit(cache=True, nogil=True)
def _is_above(points, p, facets, k):
    """Return whether a point is outside the plane of a facet."""
    z, y, x = points[p]
    facet = facets[k]
    height = facet[PLANE] * z + facet[PLANE + 1] * y + facet[PLANE + 2] * x
    return height > facet[PLANE + 3]


@njit(cache=True, nogil=True)
def _paint(points, facet, far):
    """Write the last voxel below a facet of each row that crosses it into `far`, (2, z, y).

    First for facets at the beginning of rows, where voxels are counted towards it, as negative
    numbers; then for those at the end.
    """
    nz, ny, nx, height = facet[PLANE], facet[PLANE + 1], facet[PLANE + 2], facet[PLANE + 3]
    side = far[1] if nx > 0 else far[0]
    a, b, c = facet[0], facet[1], facet[2]
    if points[a, 0] > points[b, 0]:
        a, b = b, a
    if points[b, 0] > points[c, 0]:
        b, c = c, b
    if points[a, 0] > points[b, 0]:
        a, b = b, a
    (az, ay, _), (bz, by, _), (cz, cy, _) = points[a], points[b], points[c]
    before = (by - ay) * (cz - az) < (cy - ay) * (bz - az)
    for z in range(az | 1, cz + 1, 2):
        # From the side from a to c to one of the two others, or back.
        long = (cy - ay) * (z - az), cz - az, ay
        if z <= bz and az < bz:
            short = (by - ay) * (z - az), bz - az, ay
        else:
            short = (cy - by) * (z - bz), cz - bz, by
        if before:
            long, short = short, long
        low, high = long[2] - -long[0] // long[1], short[2] + short[0] // short[1]
        for y in range(low | 1, high + 1, 2):
            # 2 x + 1 is at most where the row leaves, or -(2 x + 1) at most minus where it enters.
            side[z // 2, y // 2] = (height - nz * z - ny * y - nx) // (2 * abs(nx))
