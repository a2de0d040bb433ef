"""Inner loops of the clustering, compiled; integers only, no floating point.

All arrays of voxels have three axes (z has length 1 in 2D), all tables of seeds have three
columns z, y, x. Coordinates are those of the whole image unless said otherwise. ``owner`` is
an int32 array with a border of zeros as wide as `margin`; seed k, in ascending order of gid,
owns the voxels with k + 1, and with -(k + 1) those of its filled holes.
"""

import math
from collections.abc import Sequence

import numpy as np
from numba import njit

SMALLEST_CELL = 64
MOST = np.iinfo(np.int64).max
CUBE_BITS = 7
"""Binary logarithm of the side of the cubes of `assign`, 1/16 px."""


def bins(points: np.ndarray, far: np.ndarray | int) -> tuple[np.ndarray, ...]:
    """Sort points (n, 3) into bins at least `far` wide: what is near is in the next ones.

    Returns
    -------
    order, start : points in the order of their bins, where each bin starts (one more at the end)
    low, cell, counts : first coordinate, width and number of the bins per axis
    """
    low = points.min(axis=0)
    cell = np.maximum(np.broadcast_to(far, 3), SMALLEST_CELL)
    counts = (points.max(axis=0) - low) // cell + 1
    place = np.ravel_multi_index(tuple(((points - low) // cell).T), tuple(counts))
    start = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=math.prod(counts)))])
    return np.argsort(place, kind="stable"), start, low, cell, counts


def three(values: Sequence[int], missing: int) -> np.ndarray:
    """Return values for the axes z, y, x; `missing` is that of z in 2D."""
    return np.array([missing] * (3 - len(values)) + [int(value) for value in values])


def load() -> None:
    """Load what numba needs before the first compiled loop of a process."""
    box_sum(np.zeros((1, 1, 1), dtype=np.uint16))


def nobody(shape: Sequence[int]) -> np.ndarray:
    """Return the owners of voxels that nobody owns yet."""
    return np.zeros(shape, dtype=np.int32)


def at(score: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """Return the values at (n, 3) places, int64."""
    return score[tuple(voxel.T)].astype(np.int64)


@njit(cache=True, nogil=True)
def _is_maximum(score, z, y, x, window):
    """Tell whether a voxel beats all others in the window; the earlier one wins a tie."""
    value = score[z, y, x]
    for k in range(max(z - window[0], 0), min(z + window[0] + 1, score.shape[0])):
        for j in range(max(y - window[1], 0), min(y + window[1] + 1, score.shape[1])):
            for i in range(max(x - window[2], 0), min(x + window[2] + 1, score.shape[2])):
                other = score[k, j, i]
                if other > value:
                    return False
                if other == value and (k < z or (k == z and (j < y or (j == y and i < x)))):
                    return False
    return True


@njit(cache=True, nogil=True)
def box_sum(score):
    """Return the sum over the 3-wide box around each voxel, 0 outside, uint32."""
    depth, height, length = score.shape
    result = np.empty(score.shape, dtype=np.uint32)
    padded = np.empty(length + 2, dtype=np.uint32)
    row = padded[1:-1]
    for z in range(depth):
        for y in range(height):
            padded[:] = 0
            for k in range(max(z - 1, 0), min(z + 2, depth)):
                for j in range(max(y - 1, 0), min(y + 2, height)):
                    line = score[k, j]
                    for x in range(length):
                        row[x] += line[x]
            out, before, after = result[z, y], padded[:-2], padded[2:]
            for x in range(length):
                out[x] = before[x] + row[x] + after[x]
    return result


@njit(cache=True, nogil=True)
def find_seeds(score, fg, score_least, fg_least, window, first):
    """Return the voxels of `fg`'s box, whose first voxel is `first` in `score`, that are seeds.

    Raster order, coordinates in `score`; int64, shape (n, 3).
    """
    found = np.empty((256, 3), dtype=np.int64)
    n = 0
    for k in range(fg.shape[0]):
        z = k + first[0]
        for j in range(fg.shape[1]):
            y = j + first[1]
            seen, row = fg[k, j], score[z, y]
            line = row[first[2] : first[2] + len(seen)]
            for i in range(len(seen)):
                value = line[i]
                if value < score_least or seen[i] < fg_least:
                    continue
                x = i + first[2]
                if x > 0 and row[x - 1] >= value:
                    continue
                if x + 1 < len(row) and row[x + 1] > value:
                    continue
                if not _is_maximum(score, z, y, x, window):
                    continue
                if n == len(found):
                    more = np.empty((2 * n, 3), dtype=np.int64)
                    more[:n] = found
                    found = more
                found[n, 0] = z
                found[n, 1] = y
                found[n, 2] = x
                n += 1
    return found[:n].copy()


@njit(cache=True, nogil=True)
def keep_seeds(score, centre, radius, lsig, weights, least_cost, order, start, low, cell, counts):
    """Tell which seeds no better seed suppresses; a suppressed seed suppresses, too."""
    kept = np.ones(len(score), dtype=np.bool_)
    bin_ = np.empty(3, dtype=np.int64)
    for k in range(len(score)):
        for a in range(3):
            bin_[a] = (centre[k, a] - low[a]) // cell[a]
        for bz in range(max(bin_[0] - 1, 0), min(bin_[0] + 2, counts[0])):
            for by in range(max(bin_[1] - 1, 0), min(bin_[1] + 2, counts[1])):
                row = (bz * counts[1] + by) * counts[2]
                here = start[row + max(bin_[2] - 1, 0)]
                stop = start[row + min(bin_[2] + 2, counts[2])]
                for place in range(here, stop):
                    j = order[place]
                    if score[j] < score[k] or (score[j] == score[k] and j >= k):
                        continue
                    cost = np.int64(0)
                    for a in range(3):
                        far = abs(centre[j, a] - centre[k, a])
                        if far > max(radius[j, a], radius[k, a]):
                            cost = least_cost
                            break
                        if far > 0:
                            cost += far * far * weights[max(lsig[j, a], lsig[k, a])]
                    if cost < least_cost:
                        kept[k] = False
    return kept


@njit(cache=True, nogil=True)
def _identity_cost(identity, one, vectors, cell, seed_vector):
    dot = np.int64(0)
    for channel in range(len(seed_vector)):
        dot += np.int64(vectors[cell[0], cell[1], cell[2], channel]) * seed_vector[channel]
    return identity * (one - dot)


@njit(cache=True, nogil=True)
def cubes(centre, radius):
    """Tell of every cube which seeds may accept what points into it.

    Returns
    -------
    low, counts : first cube and number of cubes per axis
    start, seeds : where each cube, in C order, begins in `seeds` (one more at the end); those of
        a cube ascend
    """
    low = np.empty(3, dtype=np.int64)
    counts = np.empty(3, dtype=np.int64)
    for a in range(3):
        low[a] = (centre[:, a] - radius[:, a]).min() >> CUBE_BITS
        counts[a] = ((centre[:, a] + radius[:, a]).max() >> CUBE_BITS) - low[a] + 1
    start = np.zeros(counts[0] * counts[1] * counts[2] + 1, dtype=np.int64)
    seeds = np.empty(0, dtype=np.int32)
    first = np.empty(3, dtype=np.int64)
    last = np.empty(3, dtype=np.int64)
    for fill in range(2):
        for seed in range(len(centre) - 1, -1, -1):
            for a in range(3):
                first[a] = ((centre[seed, a] - radius[seed, a]) >> CUBE_BITS) - low[a]
                last[a] = ((centre[seed, a] + radius[seed, a]) >> CUBE_BITS) - low[a]
            for z in range(first[0], last[0] + 1):
                for y in range(first[1], last[1] + 1):
                    row = (z * counts[1] + y) * counts[2]
                    for cube in range(row + first[2], row + last[2] + 1):
                        if fill:
                            start[cube] -= 1
                            seeds[start[cube]] = seed
                        else:
                            start[cube] += 1
        if not fill:
            for cube in range(1, len(start)):
                start[cube] += start[cube - 1]
            seeds = np.empty(start[-1], dtype=np.int32)
    return low, counts, start, seeds


@njit(cache=True, nogil=True)
def assign(
    owner, fg, off, fg_least, inner, margin, unit, most_cost, centre, radius, weight,
    identity, one, vectors, seed_vectors, stride, first_cell,
):  # fmt: skip
    """Write into `owner` the seed of least cost for every foreground voxel.

    `inner` is the first voxel of the box, of which `fg` and `off` are, and `owner` in its margin.
    Returns the largest offset along each axis that was met.
    """
    farthest = np.zeros(3, dtype=np.int64)
    low, counts, start, seeds = cubes(centre, radius)
    at = np.empty((len(centre), 6), dtype=np.int64)
    at[:, :3] = centre
    at[:, 3:] = weight
    flat = off.shape[0] == 2
    here = np.empty(3, dtype=np.int64)
    length = owner.shape[2] - 2 * margin[2]
    far_z, far_y, far_x = np.int64(0), np.int64(0), np.int64(0)
    for k in range(owner.shape[0] - 2 * margin[0]):
        for j in range(owner.shape[1] - 2 * margin[1]):
            seen = fg[k, j]
            off_z = off[0, k, j]
            off_y = off[off.shape[0] - 2, k, j]
            off_x = off[off.shape[0] - 1, k, j]
            line = owner[k + margin[0], j + margin[1], margin[2] : margin[2] + length]
            z, y = k + inner[0], j + inner[1]
            for i in range(length):
                if seen[i] < fg_least:
                    continue
                dz = np.int64(0) if flat else np.int64(off_z[i])
                dy, dx = np.int64(off_y[i]), np.int64(off_x[i])
                far_z, far_y, far_x = max(far_z, abs(dz)), max(far_y, abs(dy)), max(far_x, abs(dx))
                x = i + inner[2]
                ez, ey, ex = unit * z + dz, unit * y + dy, unit * x + dx
                cz = (ez >> CUBE_BITS) - low[0]
                cy = (ey >> CUBE_BITS) - low[1]
                cx = (ex >> CUBE_BITS) - low[2]
                if not (0 <= cz < counts[0] and 0 <= cy < counts[1] and 0 <= cx < counts[2]):
                    continue
                cube = (cz * counts[1] + cy) * counts[2] + cx
                best, best_cost = np.int64(-1), MOST
                for place in range(start[cube], start[cube + 1]):
                    seed = seeds[place]
                    fz, fy, fx = ez - at[seed, 0], ey - at[seed, 1], ex - at[seed, 2]
                    cost = fz * fz * at[seed, 3] + fy * fy * at[seed, 4] + fx * fx * at[seed, 5]
                    if cost > most_cost:
                        continue
                    if identity > 0:
                        here[0] = z // stride[0] - first_cell[0]
                        here[1] = y // stride[1] - first_cell[1]
                        here[2] = x // stride[2] - first_cell[2]
                        cost += _identity_cost(identity, one, vectors, here, seed_vectors[seed])
                    if cost < best_cost:
                        best, best_cost = np.int64(seed), cost
                line[i] = best + 1
    farthest[0], farthest[1], farthest[2] = far_z, far_y, far_x
    return farthest


@njit(cache=True, nogil=True)
def keep_component(owner, seeds, margin, least):
    """Keep of each object the face-connected part with its seed, if of at least `least` voxels.

    `seeds` are coordinates in `owner`; a seed outside leaves its object without a voxel.
    """
    size_z, size_y, size_x = owner.shape
    voxels = owner.reshape(-1)
    steps = np.array([1, size_x, size_x * size_y])
    n_steps = 3 if margin[0] > 0 else 2
    size = np.zeros(len(seeds) + 1, dtype=np.int64)
    for voxel in voxels:
        size[voxel] += 1
    size[0] = 0
    queue = np.empty(max(size.max(), 1), dtype=np.int64)
    for k in range(len(seeds)):
        z, y, x = seeds[k]
        if not (0 <= z < size_z and 0 <= y < size_y and 0 <= x < size_x):
            continue
        label = k + 1
        if owner[z, y, x] != label:
            continue
        queue[0] = (z * size_y + y) * size_x + x
        voxels[queue[0]] = -label
        head, tail = 0, 1
        while head < tail:
            voxel = queue[head]
            head += 1
            for axis in range(n_steps):
                for step in (-steps[axis], steps[axis]):
                    place = np.uint64(voxel + step)
                    if voxels[place] == label:
                        voxels[place] = -label
                        queue[tail] = place
                        tail += 1
        if tail < least:
            for place in range(tail):
                voxels[queue[place]] = 0
    for place in range(len(voxels)):
        voxels[place] = -min(voxels[place], 0)


@njit(cache=True, nogil=True)
def fill_holes(owner, n, margin):
    """Give background that one object encloses to it; the smaller gid wins a tie."""
    first, last, gaps = _boxes(owner, n)
    for k in range(n):
        if gaps[k] and _may_enclose(owner, k + 1, first[k], last[k]):
            _fill(owner, k + 1, first[k] - margin, last[k] + margin)


@njit(cache=True, nogil=True)
def _boxes(owner, n):
    """Return the box (inclusive) of each object and whether it may have a hole.

    It has none when no gap in one of its lines begins with a `_is_corner`.
    """
    first = np.full((n, 3), 1 << 62, dtype=np.int64)
    last = np.full((n, 3), -1, dtype=np.int64)
    gaps = np.zeros(n, dtype=np.bool_)
    line = np.full(n, -1, dtype=np.int64)
    end = np.zeros(n, dtype=np.int64)
    for z in range(owner.shape[0]):
        for y in range(owner.shape[1]):
            row = owner[z, y]
            here = z * owner.shape[1] + y
            x = 0
            while x < len(row):
                label, begin = row[x], x
                x += 1
                if label == 0:
                    continue
                while x < len(row) and row[x] == label:
                    x += 1
                k = label - 1
                first[k, 0] = min(first[k, 0], z)
                first[k, 1] = min(first[k, 1], y)
                first[k, 2] = min(first[k, 2], begin)
                last[k, 0] = max(last[k, 0], z)
                last[k, 1] = max(last[k, 1], y)
                last[k, 2] = max(last[k, 2], x - 1)
                if line[k] == here and _is_corner(owner, label, z, y, end[k] + 1):
                    gaps[k] = True
                line[k] = here
                end[k] = x - 1
    return first, last, gaps


@njit(cache=True, nogil=True)
def _is_corner(owner, label, z, y, x):
    """Tell whether the voxels before one along z and y are an object's, as for the first of a hole.

    In 2D there is none along z.
    """
    return owner[z, y - 1, x] == label and (owner.shape[0] == 1 or owner[z - 1, y, x] == label)


@njit(cache=True, nogil=True)
def _may_enclose(owner, label, first, last):
    """Tell whether the first voxel of a gap is a corner with the object behind it, too."""
    for z in range(first[0], last[0] + 1):
        for y in range(first[1], last[1] + 1):
            row = owner[z, y]
            end = last[2]
            for x in range(first[2], last[2] + 1):
                if row[x] != label:
                    continue
                gap = end + 1
                end = x
                if gap < x and _is_corner(owner, label, z, y, gap):
                    closed = (owner[z, y + 1 : last[1] + 1, gap] == label).any()
                    if closed and owner.shape[0] > 1:
                        closed = (owner[z + 1 : last[0] + 1, y, gap] == label).any()
                    if closed:
                        return True
    return False


@njit(cache=True, nogil=True)
def _fill(owner, label, first, last):
    """Fill the holes of one object; its box includes a border that is not the object's."""
    size_z, size_y, size_x = last - first + 1
    # Of the box, with walls around it: 1 cannot or need not be entered any more.
    shut = np.ones((size_z + 2, size_y + 2, size_x + 2), dtype=np.uint8)
    for z in range(size_z):
        for y in range(size_y):
            for x in range(size_x):
                inside = owner[z + first[0], y + first[1], x + first[2]] == label
                shut[z + 1, y + 1, x + 1] = inside
    flat = shut.reshape(-1)
    row, plane = size_x + 2, (size_x + 2) * (size_y + 2)
    queue = np.empty(size_z * size_y * size_x, dtype=np.int64)
    queue[0] = plane + row + 1
    flat[queue[0]] = 1
    head, tail = 0, 1
    while head < tail:
        for step in (-plane, -row, -1, 1, row, plane):
            place = queue[head] + step
            if not flat[place]:
                flat[place] = 1
                queue[tail] = place
                tail += 1
        head += 1
    for z in range(size_z):
        for y in range(size_y):
            for x in range(size_x):
                inside = owner[z + first[0], y + first[1], x + first[2]]
                if inside == 0 and not shut[z + 1, y + 1, x + 1]:
                    owner[z + first[0], y + first[1], x + first[2]] = -label


@njit(cache=True, nogil=True)
def name_core(labels, owner, first, gid):
    """Write gid + 1 into the core, whose first voxel is `first` in `owner`; return voxels in it."""
    voxels_in_core = np.zeros(len(gid), dtype=np.int64)
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            row = owner[z + first[0], y + first[1], first[2] : first[2] + labels.shape[2]]
            line = labels[z, y]
            x = 0
            while x < len(row):
                label, begin = abs(row[x]), x
                x += 1
                while x < len(row) and abs(row[x]) == label:
                    x += 1
                if label > 0:
                    line[begin:x] = np.uint64(gid[label - 1] + 1)
                    voxels_in_core[label - 1] += x - begin
    return voxels_in_core


@njit(cache=True, nogil=True)
def _hash(value):
    """Return splitmix64 of a number (Steele, Lea and Flood 2014)."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def see_objects(owner, n, inner, margin, image_shape):
    """Return area, box (inclusive) and checksum of the voxels of the `n` objects."""
    area = np.zeros(n, dtype=np.int64)
    first = np.full((n, 3), 1 << 62, dtype=np.int64)
    last = np.full((n, 3), -1, dtype=np.int64)
    checksum = np.zeros(n, dtype=np.uint64)
    shift = inner - margin
    for k in range(margin[0], owner.shape[0] - margin[0]):
        z = k + shift[0]
        for j in range(margin[1], owner.shape[1] - margin[1]):
            y = j + shift[1]
            line = owner[k, j, : owner.shape[2] - margin[2]]
            row = (z * image_shape[1] + y) * image_shape[2] + shift[2]
            i = margin[2]
            while i < len(line):
                label, begin = abs(line[i]) - 1, i
                i += 1
                while i < len(line) and abs(line[i]) - 1 == label:
                    i += 1
                if label < 0:
                    continue
                area[label] += i - begin
                first[label, 0] = min(first[label, 0], z)
                first[label, 1] = min(first[label, 1], y)
                first[label, 2] = min(first[label, 2], begin + shift[2])
                last[label, 0] = max(last[label, 0], z)
                last[label, 1] = max(last[label, 1], y)
                last[label, 2] = max(last[label, 2], i - 1 + shift[2])
                hashes = np.uint64(0)
                for place in range(begin, i):
                    hashes += _hash(row + place)
                checksum[label] += hashes
    return area, first, last, checksum


@njit(cache=True, nogil=True)
def sum_fit(
    owner, wanted, off, inner, margin, unit, centre, weight, identity, one,
    vectors, seed_vectors, stride, first_cell, phi, shift,
):  # fmt: skip
    """Return, per wanted object, its accepted voxels, sum of phi and sum of phi * identity.

    Voxels of filled holes were accepted by no seed and do not count.
    """
    n = len(wanted)
    count = np.zeros(n, dtype=np.int64)
    phi_sum = np.zeros(n, dtype=np.int64)
    id_sum = np.zeros((n, vectors.shape[3]), dtype=np.int64)
    flat = off.shape[0] == 2
    here = np.empty(3, dtype=np.int64)
    length = owner.shape[2] - 2 * margin[2]
    for k in range(owner.shape[0] - 2 * margin[0]):
        for j in range(owner.shape[1] - 2 * margin[1]):
            line = owner[k + margin[0], j + margin[1], margin[2] : margin[2] + length]
            off_z = off[0, k, j]
            off_y = off[off.shape[0] - 2, k, j]
            off_x = off[off.shape[0] - 1, k, j]
            z, y = k + inner[0], j + inner[1]
            here[0], here[1] = z // stride[0] - first_cell[0], y // stride[1] - first_cell[1]
            i = 0
            while i < length:
                seed = np.int64(line[i]) - 1
                if seed < 0 or not wanted[seed]:
                    i += 1
                    continue
                # Voxels in a row that share seed and cell, and so their vector.
                cell = (i + inner[2]) // stride[2]
                here[2] = cell - first_cell[2]
                end = min(length, (cell + 1) * stride[2] - inner[2])
                more = np.int64(0)
                if identity > 0:
                    more = _identity_cost(identity, one, vectors, here, seed_vectors[seed])
                z_far = unit * z - centre[seed, 0]
                y_far = unit * y - centre[seed, 1]
                x_far = unit * inner[2] - centre[seed, 2]
                fit = np.int64(0)
                begin = i
                while i < end and line[i] == seed + 1:
                    fz = np.int64(0) if flat else z_far + np.int64(off_z[i])
                    fy = y_far + np.int64(off_y[i])
                    fx = x_far + unit * i + np.int64(off_x[i])
                    cost = fz * fz * weight[seed, 0] + fy * fy * weight[seed, 1]
                    cost += fx * fx * weight[seed, 2] + more
                    place = max(cost, 0) >> shift
                    if place < len(phi):
                        fit += np.int64(phi[place])
                    i += 1
                count[seed] += i - begin
                phi_sum[seed] += fit
                sums, vector = id_sum[seed], vectors[here[0], here[1], here[2]]
                for channel in range(len(sums)):
                    sums[channel] += fit * np.int64(vector[channel])
    return count, phi_sum, id_sum


@njit(cache=True, nogil=True)
def interfaces(owner, first, shape, fg, seed, edge_margin):
    """Return the faces between voxels of different objects, of the voxels of a core.

    `first` is the first voxel of the core in `owner`, `shape` its shape; `fg` and `seed` are of
    the core and as many voxels more at its far sides as `edge_margin` says (0 at the image's
    end). Each face counts for the voxel before it.

    Returns
    -------
    one, other : (n,) int32, numbers of the objects, the lower first
    weakest : (n, 2) int64, the smaller fg and the smaller seed of the two voxels
    """
    count = 0
    for fill in range(2):
        if fill:
            one = np.empty(count, dtype=np.int32)
            other = np.empty(count, dtype=np.int32)
            weakest = np.empty((count, 2), dtype=np.int64)
            count = 0
        for z in range(shape[0]):
            for y in range(shape[1]):
                for x in range(shape[2]):
                    a = abs(owner[z + first[0], y + first[1], x + first[2]])
                    if a == 0:
                        continue
                    for axis in range(3):
                        k, j, i = z + (axis == 0), y + (axis == 1), x + (axis == 2)
                        if (
                            k >= shape[0] + edge_margin[0]
                            or j >= shape[1] + edge_margin[1]
                            or i >= shape[2] + edge_margin[2]
                        ):
                            continue
                        b = abs(owner[k + first[0], j + first[1], i + first[2]])
                        if b == 0 or b == a:
                            continue
                        if fill:
                            one[count] = min(a, b)
                            other[count] = max(a, b)
                            weakest[count, 0] = min(fg[z, y, x], fg[k, j, i])
                            weakest[count, 1] = min(seed[z, y, x], seed[k, j, i])
                        count += 1
    return one, other, weakest


@njit(cache=True, nogil=True)
def outlines(owner, first, shape, edge_margin):
    """Count the pairs of neighbouring voxels that the outline of an object parts.

    As for `interfaces`; a voxel and the next one along an axis are a pair.

    Returns
    -------
    (3, longest side of the core) int64 array
        Per axis, by the place of the first voxel of the pair in the core; the last place of a
        whole core is at the face of the tile.
    """
    found = np.zeros((3, max(shape)), dtype=np.int64)
    length = shape[2] - 1 + edge_margin[2]
    along_x = found[2]
    for z in range(shape[0]):
        for y in range(shape[1]):
            k, j = z + first[0], y + first[1]
            row = owner[k, j, first[2] : first[2] + length + 1]
            for x in range(length):
                along_x[x] += abs(row[x]) != abs(row[x + 1])
            if y + 1 < shape[1] + edge_margin[1]:
                found[1, y] += _n_differ(row, owner[k, j + 1, first[2] :], shape[2])
            if z + 1 < shape[0] + edge_margin[0]:
                found[0, z] += _n_differ(row, owner[k + 1, j, first[2] :], shape[2])
    return found


@njit(cache=True, nogil=True)
def _n_differ(one, other, n):
    """Return how many of the first `n` voxels of two rows are of different objects."""
    found = np.int32(0)
    for x in range(n):
        found += np.int32(abs(one[x]) != abs(other[x]))
    return found
