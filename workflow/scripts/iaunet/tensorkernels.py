"""The inner loops of the clustering on the tensors of a device, with the results of `kernels`.

Functions, arguments and results are those of `kernels`, so `label_window` works with either;
``owner`` is a tensor of `nobody` here and stays on the device, tables of objects come back as
arrays. Whatever the device, the integers are the same: nothing is a float; sums are of 64 bits,
which wrap around as they do there; and where many write into one place (sums, least, largest),
integers do not tell in which order they came.

What is small stays on the host: which seeds suppress which, and which object encloses which piece
of background (`enclosure`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from iaunet import enclosure, kernels, pieces

log = logging.getLogger("tensorkernels")

AT_ONCE = 1 << 21
"""Voxels whose costs are computed at the same time."""
COST_BYTES = 300
"""Of device memory, about, per voxel whose costs are computed."""
GOLDEN, MIX, MIX_AGAIN = (
    n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""The constants of splitmix64, as numbers with a sign."""

VOXEL_BYTES = 64
"""Of device memory per voxel of a window."""

Result = TypeVar("Result")


def most_voxels(device: torch.device, threads: int) -> int:
    """Return how many voxels the windows of some threads may have, by the memory of a device."""
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, free // threads - AT_ONCE * COST_BYTES) // VOXEL_BYTES


def on_device(device: torch.device, work: Callable[[object], Result], what: str) -> Result:
    """Return what work gives with the loops of a device; with compiled ones when memory runs out.

    The integers are the same.
    """
    try:
        return work(TensorKernels(device))
    except RuntimeError as error:  # all its tensors must be gone before the next try
        if "out of memory" not in str(error):  # also of a device that has none to begin with
            raise
    if device.type == "cuda":
        torch.cuda.empty_cache()
    log.warning("%s: out of memory on %s, labelled on the CPU; nothing changes", what, device)
    return work(kernels)


class TensorKernels:
    """What `kernels` does, on a device; for one window, whose arrays it sends there once."""

    keep_seeds = staticmethod(kernels.keep_seeds)

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sent: dict[tuple, tuple[np.ndarray, torch.Tensor]] = {}

    def _there(self, values: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return an array as a tensor on the device; of uint16, which it cannot reckon with, int32.

        The array is kept as well: else another one could lie at its place in memory meanwhile.
        """
        if isinstance(values, torch.Tensor):
            return values
        face = values.__array_interface__
        key = face["data"][0], face["typestr"], values.shape, values.strides
        if key not in self._sent:
            plain = np.ascontiguousarray(values)
            if values.dtype == np.uint16:
                sent = torch.from_numpy(plain.view(np.int16)).to(self.device)
                sent = sent.to(torch.int32) & 0xFFFF
            else:
                sent = torch.from_numpy(plain).to(self.device)
            self._sent[key] = values, sent
        return self._sent[key][1]

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def nobody(self, shape: np.ndarray) -> torch.Tensor:
        """Return the owners of voxels that nobody owns yet; what the seeds needed is forgotten."""
        self._sent.clear()
        return self._zeros(*map(int, shape), dtype=torch.int32)

    def at(self, score: np.ndarray | torch.Tensor, voxel: np.ndarray) -> np.ndarray:
        """Return the values at (n, 3) places, int64."""
        place = torch.from_numpy(np.ravel_multi_index(tuple(voxel.T), score.shape))
        return self._there(score).flatten()[place.to(self.device)].to(torch.int64).cpu().numpy()

    def box_sum(self, score: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return the sum over the 3-wide box around each voxel, int32: none reaches 2**31."""
        total = self._there(score).to(torch.int32)
        for axis in range(3):
            near = total.clone()
            last = total.shape[axis] - 1
            near.narrow(axis, 1, last).add_(total.narrow(axis, 0, last))
            near.narrow(axis, 0, last).add_(total.narrow(axis, 1, last))
            total = near
        return total

    def find_seeds(
        self,
        score: np.ndarray | torch.Tensor,
        fg: np.ndarray,
        score_least: int,
        fg_least: int,
        window: np.ndarray,
        first: np.ndarray,
    ) -> np.ndarray:
        """Return the seeds; a voxel is one when its key is the largest of the window around it.

        The key is the score, and of equal ones the place in raster order, the earlier the larger.
        """
        score, fg = self._there(score), self._there(fg)
        later = torch.arange(score.numel() - 1, -1, -1, device=self.device).view(score.shape)
        key = (score.to(torch.int64) << 32) + later
        best = key
        for axis in range(3):
            best = _largest_around(best, axis, int(window[axis]))
        box = _box(first, fg.shape)
        found = (score[box] >= score_least) & (fg >= fg_least) & (key[box] == best[box])
        return found.nonzero().cpu().numpy() + first

    def assign(
        self, owner, fg, off, fg_least, inner, margin, unit, most_cost, centre, radius, weight,
        identity, one, vectors, seed_vectors, stride, first_cell,
    ):  # fmt: skip
        """Write into `owner` the seed of least cost for every foreground voxel."""
        objects = self._there(fg) >= fg_least
        low, counts, *of_cubes = kernels.cubes(centre, radius)
        start, seeds = map(self._there, of_cubes)
        centre, weight = self._there(centre), self._there(weight)
        vectors, seed_vectors = self._there(vectors), self._there(seed_vectors)
        farthest = self._zeros(3)
        for some in _where(objects.flatten()):
            place = _unravelled(some, fg.shape)
            voxel = _moved(place, inner)
            offset = _offsets(self._there(off), place)
            end = [unit * v + o for v, o in zip(voxel, offset, strict=True)]
            largest = torch.stack([axis.abs().max() for axis in offset])
            farthest = torch.maximum(farthest, largest)
            of_voxel = _cells(voxel, stride, first_cell, vectors.shape) if identity > 0 else None
            best = torch.full_like(some, -1)
            least = torch.zeros_like(some)
            for near, candidate in _candidates(end, start, low, counts):
                seed = seeds[candidate].to(torch.int64)
                cost, near, seed = _accepted(end, near, seed, centre, weight, most_cost)
                if identity > 0:
                    dot = _dots(vectors, of_voxel[near], seed_vectors, seed)
                    cost += identity * (one - dot)
                _improve(best, least, near, seed, cost)
            at = _ravelled(_moved(place, margin), owner.shape)
            owner.view(-1)[at] = (best + 1).to(torch.int32)
        return farthest.cpu().numpy()

    def keep_component(
        self, owner: torch.Tensor, seeds: np.ndarray, margin: np.ndarray, least: int
    ) -> None:
        """Keep of each object the face-connected part with its seed, if of at least `least` voxels.

        Parts are found as `joined` says, so objects of any shape take a few rounds.
        """
        flat = owner.view(-1)
        first, run = pieces.runs(flat)
        pairs = [
            pieces.touching(run, step, (flat[:-step] == flat[step:]) & (flat[step:] > 0))
            for step in _steps(owner.shape, margin)[1:]
        ]
        root = pieces.joined(len(first), torch.cat(pairs, dim=1))
        size = self._zeros(len(first)).index_add_(0, root, pieces.lengths(first, len(flat)))
        label = np.arange(1, len(seeds) + 1)
        inside = ((seeds >= 0) & (seeds < owner.shape)).all(axis=1)
        place = np.ravel_multi_index(tuple(seeds[inside].T), owner.shape)
        place = torch.from_numpy(place).to(self.device)
        is_own = flat[place] == torch.from_numpy(label[inside]).to(self.device)
        part = root[run[place[is_own]]]
        kept = self._zeros(len(first), dtype=torch.bool)
        kept[part[size[part] >= least]] = True
        flat *= kept[root][run]

    def fill_holes(self, owner: torch.Tensor, n: int, margin: np.ndarray) -> None:
        """Give background that one object encloses to it; the smaller gid wins a tie.

        Every object is in one piece, as `keep_component` leaves it. Then what encloses what
        follows from which objects and pieces of background touch, a short list.
        """
        flat = owner.view(-1)
        first, run = pieces.runs(flat)
        steps = _steps(owner.shape, margin)
        equal = [flat[:-step] == flat[step:] for step in steps]
        pairs = [
            pieces.touching(run, step, same & (flat[step:] == 0))
            for step, same in zip(steps[1:], equal[1:], strict=True)
        ]
        root = pieces.joined(len(first), torch.cat(pairs, dim=1))
        label = flat[first].to(torch.int64)
        own = torch.arange(len(root), device=self.device)
        first = ((label == 0) & (root == own)).nonzero()[:, 0]  # of every piece of background
        if len(first) == 1:  # the outside, of which the border of zeros is
            return
        region = self._zeros(len(root))
        region[first] = n + own[: len(first)]
        region = torch.where(label > 0, label - 1, region[root])
        n_regions = n + len(first)
        beside = [
            pieces.touching(run, step, ~same) for step, same in zip(steps, equal, strict=True)
        ]
        low, high = region[torch.cat(beside, dim=1)].aminmax(dim=0)
        packed = (low * n_regions + high).unique().cpu().numpy()
        around = enclosure.enclosing(np.stack(np.divmod(packed, n_regions), 1), n, n_regions)
        filled = np.concatenate([np.zeros(n, np.int32), -1 - around.astype(np.int32)])
        flat += torch.from_numpy(filled).to(self.device)[region][run]

    def name_core(
        self, labels: np.ndarray, owner: torch.Tensor, first: np.ndarray, gid: np.ndarray
    ) -> np.ndarray:
        """Write gid + 1 into the core, whose first voxel is `first` in `owner`; count voxels."""
        core = owner[_box(first, labels.shape)].abs()
        name = torch.from_numpy(np.concatenate([[0], gid + 1])).to(self.device)
        labels[...] = name[core].cpu().numpy().view(np.uint64)
        return core.flatten().bincount(minlength=len(gid) + 1)[1:].cpu().numpy()

    def see_objects(
        self,
        owner: torch.Tensor,
        n: int,
        inner: np.ndarray,
        margin: np.ndarray,
        image_shape: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        """Return area, box (inclusive) and checksum of the voxels of the `n` objects."""
        area, checksum = self._zeros(n), self._zeros(n)
        first = torch.full((n, 3), 1 << 62, device=self.device)
        last = torch.full((n, 3), -1, device=self.device)
        _, rows, columns = map(int, image_shape)
        for some, seed in self._wanted(owner.view(-1).abs(), np.ones(n, bool)):
            starts = pieces.starts(seed, some - torch.arange(len(some), device=self.device))
            size, seed = pieces.lengths(starts, len(some)), seed[starts]
            z, y, x = _moved(_unravelled(some, owner.shape), inner - margin)
            hashes = _hash((z * rows + y) * columns + x)
            begin = torch.stack([z, y, x], dim=1)[starts]
            end = begin.clone()
            end[:, 2] += size - 1
            area.index_add_(0, seed, size)
            checksum.index_add_(0, seed, pieces.sums(hashes, starts))
            to = seed[:, None].expand(-1, 3)
            first.scatter_reduce_(0, to, begin, "amin")
            last.scatter_reduce_(0, to, end, "amax")
        area, first, last, checksum = (part.cpu().numpy() for part in (area, first, last, checksum))
        return area, first, last, checksum.view(np.uint64)

    def sum_fit(
        self, owner, wanted, off, inner, margin, unit, centre, weight, identity, one,
        vectors, seed_vectors, stride, first_cell, phi, shift,
    ):  # fmt: skip
        """Return, per wanted object, its accepted voxels, sum of phi and sum of phi * identity."""
        vectors, seed_vectors = self._there(vectors), self._there(seed_vectors)
        centre, weight, phi = self._there(centre), self._there(weight), self._there(phi)
        count, phi_sum = self._zeros(len(wanted)), self._zeros(len(wanted))
        id_sum = self._zeros(len(wanted), vectors.shape[3])
        for some, seed in self._wanted(owner.view(-1), wanted):
            place = _moved(_unravelled(some, owner.shape), -margin)
            offset = _offsets(self._there(off), place)
            voxel = _moved(place, inner)
            cost = torch.zeros_like(some)
            for axis in range(3):
                far = unit * voxel[axis] + offset[axis] - centre[seed, axis]
                cost += far * far * weight[seed, axis]
            cell = _cells(voxel, stride, first_cell, vectors.shape)
            if identity > 0:
                cost += identity * (one - _dots(vectors, cell, seed_vectors, seed))
            place = cost.clamp_(min=0) >> shift
            fit = phi[place.clamp(max=len(phi) - 1)] * (place < len(phi))
            starts = pieces.starts(seed, cell)
            fit, seed, cell = pieces.sums(fit, starts), seed[starts], cell[starts]
            count.index_add_(0, seed, pieces.lengths(starts, len(some)))
            phi_sum.index_add_(0, seed, fit)
            of_cell = vectors.flatten(0, 2)[cell].to(torch.int64)
            id_sum.index_add_(0, seed, fit[:, None] * of_cell)
        return tuple(part.cpu().numpy() for part in (count, phi_sum, id_sum))

    def _wanted(
        self, flat: torch.Tensor, wanted: np.ndarray
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the voxels of the wanted objects, in raster order, and the object of each."""
        is_wanted = torch.from_numpy(np.concatenate([[False], wanted])).to(self.device)
        for some in _where(flat > 0):
            label = flat[some].to(torch.int64)
            kept = is_wanted[label]
            if kept.any():
                yield some[kept], label[kept] - 1

    def interfaces(
        self,
        owner: torch.Tensor,
        first: np.ndarray,
        shape: np.ndarray,
        fg: np.ndarray,
        seed: np.ndarray,
        edge_margin: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the faces between voxels of different objects, of the voxels of a core."""
        fg, seed = self._there(fg), self._there(seed)
        every, found = [], []
        for axis, (here, there) in enumerate(_pairs(shape, edge_margin)):
            one, other = (owner[_box(first, fg.shape)][box].abs() for box in (here, there))
            face = (one != other) & (one > 0) & (other > 0)
            place = face.nonzero()
            every.append(3 * _ravelled(list(place.T), [int(n) for n in shape]) + axis)
            columns = [torch.minimum(one, other), torch.maximum(one, other)]
            columns += [torch.minimum(values[here], values[there]) for values in (fg, seed)]
            found.append(torch.stack([column[face].to(torch.int64) for column in columns], dim=1))
        order = torch.cat(every).argsort()
        table = torch.cat(found)[order].cpu().numpy()
        one, other = table[:, :2].T.astype(np.int32)
        return one, other, table[:, 2:]

    def outlines(
        self, owner: torch.Tensor, first: np.ndarray, shape: np.ndarray, edge_margin: np.ndarray
    ) -> np.ndarray:
        """Count the pairs of neighbouring voxels that the outline of an object parts."""
        found = np.zeros((3, max(shape)), dtype=np.int64)
        around = owner[_box(first, shape + edge_margin)].abs()
        for axis, (here, there) in enumerate(_pairs(shape, edge_margin)):
            differ = (around[here] != around[there]).sum(dim=[a for a in range(3) if a != axis])
            found[axis, : len(differ)] = differ.cpu().numpy()
        return found


def _where(flat: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the places of a flat tensor that are true, in parts of at most `AT_ONCE`."""
    found = flat.nonzero()[:, 0]
    return found.split(AT_ONCE) if len(found) else ()


def _box(first: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(a) + int(n)) for a, n in zip(first, shape, strict=True))


def _pairs(
    shape: np.ndarray, edge_margin: np.ndarray
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield for every axis the boxes of the voxels of a core and of the next ones along it."""
    for axis in range(3):
        n = min(int(shape[axis]), int(shape[axis] + edge_margin[axis]) - 1)
        here = [slice(0, int(length)) for length in shape]
        there = here.copy()
        here[axis], there[axis] = slice(0, n), slice(1, n + 1)
        yield tuple(here), tuple(there)


def _steps(shape: Sequence[int], margin: np.ndarray) -> list[int]:
    """Return how far apart neighbours along x, y and, in 3D, z are in a flat array.

    The last voxel of a row and the first of the next are border, both, and in no object.
    """
    steps = [1, shape[2], shape[1] * shape[2]]
    return steps if margin[0] > 0 else steps[:2]


def _moved(place: Sequence[torch.Tensor], by: Sequence[int]) -> list[torch.Tensor]:
    return [p + int(n) for p, n in zip(place, by, strict=True)]


def _unravelled(place: torch.Tensor, shape: Sequence[int]) -> list[torch.Tensor]:
    """Return the places z, y, x of indices in raster order."""
    return list(torch.unravel_index(place, tuple(shape)))


def _ravelled(place: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """Return the indices in raster order of places z, y, x."""
    return (place[0] * shape[1] + place[1]) * shape[2] + place[2]


def _largest_around(values: torch.Tensor, axis: int, far: int) -> torch.Tensor:
    """Return the largest of all that are at most `far` away along an axis; none is below 0."""
    edge = values.narrow(axis, 0, 1).expand([far if a == axis else -1 for a in range(3)])
    edge = torch.zeros_like(edge)
    found, width = torch.cat([edge, values, edge], dim=axis), 1
    while width < 2 * far + 1:
        step = min(width, 2 * far + 1 - width)
        n = found.shape[axis] - step
        found = torch.maximum(found.narrow(axis, 0, n), found.narrow(axis, step, n))
        width += step
    return found


def _offsets(off: torch.Tensor, place: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the offsets of voxels along z, y, x; along z 0 in 2D."""
    at = _ravelled(place, off.shape[1:])
    found = [axis.flatten()[at].to(torch.int64) for axis in off]
    return [torch.zeros_like(at)] * (3 - len(found)) + found


def _cells(
    voxel: Sequence[torch.Tensor], stride: np.ndarray, first: np.ndarray, shape: Sequence[int]
) -> torch.Tensor:
    """Return the indices of the cells of voxels, in raster order."""
    place = [v.div(int(n), rounding_mode="floor") for v, n in zip(voxel, stride, strict=True)]
    return _ravelled(_moved(place, -first), shape)


def _dots(
    vectors: torch.Tensor, cell: torch.Tensor, others: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    """Return the scalar products of the vectors of cells with some of the others."""
    flat, found = vectors.flatten(0, 2), torch.zeros_like(cell)
    for channel in range(vectors.shape[3]):
        one = flat[cell, channel].to(torch.int64)
        found += one * others[other, channel]
    return found


def _candidates(
    end: Sequence[torch.Tensor], start: torch.Tensor, low: np.ndarray, counts: np.ndarray
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield points and, for each, a place in the list of seeds of its cube, until all were yielded.

    No point comes twice at a time; see `kernels.cubes`.
    """
    cube = [(e >> kernels.CUBE_BITS) - int(a) for e, a in zip(end, low, strict=True)]
    inside = torch.ones_like(end[0], dtype=torch.bool)
    for at, n in zip(cube, counts, strict=True):
        inside &= (at >= 0) & (at < int(n))
    near = inside.nonzero()[:, 0]
    cube = _ravelled([at[near] for at in cube], [int(n) for n in counts])
    place, stop = start[cube], start[cube + 1]
    while len(near):
        left = place < stop
        near, place, stop = near[left], place[left], stop[left]
        yield near, place
        place = place + 1


def _accepted(
    end: Sequence[torch.Tensor],
    near: torch.Tensor,
    seed: torch.Tensor,
    centre: torch.Tensor,
    weight: torch.Tensor,
    most_cost: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return costs, points and seeds of those pairs in which the seed accepts the point."""
    cost = torch.zeros_like(near)
    for axis in range(3):
        far = end[axis][near] - centre[seed, axis]
        cost += far * far * weight[seed, axis]
    inside = cost <= most_cost
    return cost[inside], near[inside], seed[inside]


def _improve(
    best: torch.Tensor,
    least: torch.Tensor,
    near: torch.Tensor,
    seed: torch.Tensor,
    cost: torch.Tensor,
) -> None:
    """Take the seeds for the points `near` where they cost less; of equal ones the earlier."""
    before, cost_before = best[near], least[near]
    better = (before < 0) | (cost < cost_before) | ((cost == cost_before) & (seed < before))
    best[near[better]], least[near[better]] = seed[better], cost[better]


def _hash(value: torch.Tensor) -> torch.Tensor:
    """Return splitmix64 of numbers, see `kernels`; its bits, as those of numbers with a sign."""
    value = value + GOLDEN
    value = (value ^ _right(value, 30)) * MIX
    value = (value ^ _right(value, 27)) * MIX_AGAIN
    return value ^ _right(value, 31)


def _right(value: torch.Tensor, n: int) -> torch.Tensor:
    """Return the bits n places further right, with zeros behind them, whatever the sign."""
    return (value >> n) & ((1 << (64 - n)) - 1)
