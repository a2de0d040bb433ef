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
FAR_AWAY = -(1 << 60)


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
            for i in range(fg.shape[2]):
                x = i + first[2]
                value = score[z, y, x]
                if value < score_least or fg[k, j, i] < fg_least:
                    continue
                if x > 0 and score[z, y, x - 1] >= value:
                    continue
                if x + 1 < score.shape[2] and score[z, y, x + 1] > value:
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
def _near(near, bz, by, bx, start, counts):
    """Write the seeds in a bin and those around it into `near`; return how many there are."""
    found = 0
    if bx < -1 or bx > counts[2]:
        return found
    for cz in range(max(bz - 1, 0), min(bz + 2, counts[0])):
        for cy in range(max(by - 1, 0), min(by + 2, counts[1])):
            row = (cz * counts[1] + cy) * counts[2]
            for place in range(start[row + max(bx - 1, 0)], start[row + min(bx + 2, counts[2])]):
                near[found] = place
                found += 1
    return found


@njit(cache=True, nogil=True)
def assign(
    owner, fg, off, fg_least, origin, inner, margin, unit, most_cost, centre, radius, weight,
    order, start, low, cell, counts, identity, one, vectors, seed_vectors, stride, first_cell,
):  # fmt: skip
    """Write into `owner` the seed of least cost for every foreground voxel.

    `origin` is the first voxel of `fg` and `off`, `inner` that of the box in `owner`.
    Returns the largest offset along each axis that was met.
    """
    farthest = np.zeros(3, dtype=np.int64)
    n = len(centre)
    # Seeds in the order of their bins: the loop below then reads them one after another.
    at = np.empty((n, 9), dtype=np.int64)
    for place in range(n):
        for a in range(3):
            at[place, a] = centre[order[place], a]
            at[place, 3 + a] = radius[order[place], a]
            at[place, 6 + a] = weight[order[place], a]
    flat = off.shape[0] == 2
    here = np.empty(3, dtype=np.int64)
    near = np.empty(n, dtype=np.int64)
    n_near = 0
    edge = np.full(3, FAR_AWAY, dtype=np.int64)
    for z in range(inner[0], inner[0] + owner.shape[0] - 2 * margin[0]):
        for y in range(inner[1], inner[1] + owner.shape[1] - 2 * margin[1]):
            for x in range(inner[2], inner[2] + owner.shape[2] - 2 * margin[2]):
                k, j, i = z - origin[0], y - origin[1], x - origin[2]
                if fg[k, j, i] < fg_least:
                    continue
                dz = np.int64(0) if flat else np.int64(off[0, k, j, i])
                dy = np.int64(off[off.shape[0] - 2, k, j, i])
                dx = np.int64(off[off.shape[0] - 1, k, j, i])
                farthest[0] = max(farthest[0], abs(dz))
                farthest[1] = max(farthest[1], abs(dy))
                farthest[2] = max(farthest[2], abs(dx))
                ez, ey, ex = unit * z + dz, unit * y + dy, unit * x + dx
                # Neighbours point to the same place, mostly, and divisions are slow.
                if not (
                    0 <= ez - edge[0] < cell[0]
                    and 0 <= ey - edge[1] < cell[1]
                    and 0 <= ex - edge[2] < cell[2]
                ):
                    bz = (ez - low[0]) // cell[0]
                    by = (ey - low[1]) // cell[1]
                    bx = (ex - low[2]) // cell[2]
                    edge[0] = low[0] + bz * cell[0]
                    edge[1] = low[1] + by * cell[1]
                    edge[2] = low[2] + bx * cell[2]
                    n_near = _near(near, bz, by, bx, start, counts)
                best, best_cost = np.int64(-1), np.int64(0)
                for k_near in range(n_near):
                    place = near[k_near]
                    fz = abs(ez - at[place, 0])
                    fy = abs(ey - at[place, 1])
                    fx = abs(ex - at[place, 2])
                    if fz > at[place, 3] or fy > at[place, 4] or fx > at[place, 5]:
                        continue
                    cost = fz * fz * at[place, 6] + fy * fy * at[place, 7]
                    cost += fx * fx * at[place, 8]
                    if cost > most_cost:
                        continue
                    seed = order[place]
                    if identity > 0:
                        here[0] = z // stride[0] - first_cell[0]
                        here[1] = y // stride[1] - first_cell[1]
                        here[2] = x // stride[2] - first_cell[2]
                        cost += _identity_cost(identity, one, vectors, here, seed_vectors[seed])
                    if best < 0 or cost < best_cost or (cost == best_cost and seed < best):
                        best, best_cost = seed, cost
                owner[
                    z - inner[0] + margin[0], y - inner[1] + margin[1], x - inner[2] + margin[2]
                ] = best + 1
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
                    if voxels[voxel + step] == label:
                        voxels[voxel + step] = -label
                        queue[tail] = voxel + step
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
        if gaps[k]:
            _fill(owner, k + 1, first[k] - margin, last[k] + margin)


@njit(cache=True, nogil=True)
def _boxes(owner, n):
    """Return the box (inclusive) of each object and whether one of its lines has a gap."""
    first = np.full((n, 3), 1 << 62, dtype=np.int64)
    last = np.full((n, 3), -1, dtype=np.int64)
    gaps = np.zeros(n, dtype=np.bool_)
    line = np.full(n, -1, dtype=np.int64)
    end = np.zeros(n, dtype=np.int64)
    for z in range(owner.shape[0]):
        for y in range(owner.shape[1]):
            for x in range(owner.shape[2]):
                k = owner[z, y, x] - 1
                if k < 0:
                    continue
                first[k, 0] = min(first[k, 0], z)
                first[k, 1] = min(first[k, 1], y)
                first[k, 2] = min(first[k, 2], x)
                last[k, 0] = max(last[k, 0], z)
                last[k, 1] = max(last[k, 1], y)
                last[k, 2] = max(last[k, 2], x)
                here = z * owner.shape[1] + y
                if line[k] == here and end[k] != x - 1:
                    gaps[k] = True
                line[k] = here
                end[k] = x
    return first, last, gaps


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
            for x in range(labels.shape[2]):
                label = abs(owner[z + first[0], y + first[1], x + first[2]])
                if label > 0:
                    labels[z, y, x] = np.uint64(gid[label - 1] + 1)
                    voxels_in_core[label - 1] += 1
    return voxels_in_core


@njit(cache=True, nogil=True)
def _hash(value):
    """Return splitmix64 of a number (Steele, Lea and Flood 2014)."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def see_objects(owner, wanted, inner, margin, image_shape):
    """Return area, box (inclusive) and checksum of the voxels of the wanted objects."""
    n = len(wanted)
    area = np.zeros(n, dtype=np.int64)
    first = np.full((n, 3), 1 << 62, dtype=np.int64)
    last = np.full((n, 3), -1, dtype=np.int64)
    checksum = np.zeros(n, dtype=np.uint64)
    for k in range(margin[0], owner.shape[0] - margin[0]):
        z = k - margin[0] + inner[0]
        for j in range(margin[1], owner.shape[1] - margin[1]):
            y = j - margin[1] + inner[1]
            i, end = margin[2], owner.shape[2] - margin[2]
            while i < end:
                label, begin = abs(owner[k, j, i]) - 1, i
                i += 1
                while i < end and abs(owner[k, j, i]) - 1 == label:
                    i += 1
                if label < 0 or not wanted[label]:
                    continue
                shift = inner[2] - margin[2]
                area[label] += i - begin
                first[label, 0] = min(first[label, 0], z)
                first[label, 1] = min(first[label, 1], y)
                first[label, 2] = min(first[label, 2], begin + shift)
                last[label, 0] = max(last[label, 0], z)
                last[label, 1] = max(last[label, 1], y)
                last[label, 2] = max(last[label, 2], i - 1 + shift)
                row = (z * image_shape[1] + y) * image_shape[2] + shift
                for place in range(begin, i):
                    checksum[label] += _hash(row + place)
    return area, first, last, checksum


@njit(cache=True, nogil=True)
def _add_vector(sums, seed, fit, vectors, cell):
    if fit > 0:
        for channel in range(vectors.shape[3]):
            sums[seed, channel] += fit * np.int64(vectors[cell[0], cell[1], cell[2], channel])


@njit(cache=True, nogil=True)
def sum_fit(
    owner, wanted, off, origin, inner, margin, unit, centre, weight, identity, one,
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
    for k in range(margin[0], owner.shape[0] - margin[0]):
        z = k - margin[0] + inner[0]
        for j in range(margin[1], owner.shape[1] - margin[1]):
            y = j - margin[1] + inner[1]
            here[0], here[1] = z // stride[0] - first_cell[0], y // stride[1] - first_cell[1]
            # Of voxels in a row that share seed and cell: what their vector is multiplied by.
            run_seed, run_fit = np.int64(-1), np.int64(0)
            for i in range(margin[2], owner.shape[2] - margin[2]):
                seed = np.int64(owner[k, j, i] - 1)
                if seed < 0 or not wanted[seed]:
                    continue
                x = i - margin[2] + inner[2]
                oz, oy, ox = z - origin[0], y - origin[1], x - origin[2]
                cost = np.int64(0)
                if not flat:
                    far = unit * z + np.int64(off[0, oz, oy, ox]) - centre[seed, 0]
                    cost += far * far * weight[seed, 0]
                far = unit * y + np.int64(off[off.shape[0] - 2, oz, oy, ox]) - centre[seed, 1]
                cost += far * far * weight[seed, 1]
                far = unit * x + np.int64(off[off.shape[0] - 1, oz, oy, ox]) - centre[seed, 2]
                cost += far * far * weight[seed, 2]
                cell = x // stride[2] - first_cell[2]
                if seed != run_seed or cell != here[2]:
                    _add_vector(id_sum, run_seed, run_fit, vectors, here)
                    run_seed, run_fit, here[2] = seed, np.int64(0), cell
                if identity > 0:
                    cost += _identity_cost(identity, one, vectors, here, seed_vectors[seed])
                place = max(cost, 0) >> shift
                fit = np.int64(phi[place]) if place < len(phi) else np.int64(0)
                count[seed] += 1
                phi_sum[seed] += fit
                run_fit += fit
            _add_vector(id_sum, run_seed, run_fit, vectors, here)
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
    at = np.zeros(3, dtype=np.int64)
    for z in range(shape[0]):
        at[0] = z
        for y in range(shape[1]):
            at[1] = y
            for x in range(shape[2]):
                at[2] = x
                a = abs(owner[z + first[0], y + first[1], x + first[2]])
                for axis in range(3):
                    if at[axis] + 1 >= shape[axis] + edge_margin[axis]:
                        continue
                    k, j, i = z + (axis == 0), y + (axis == 1), x + (axis == 2)
                    if abs(owner[k + first[0], j + first[1], i + first[2]]) != a:
                        found[axis, at[axis]] += 1
    return found
