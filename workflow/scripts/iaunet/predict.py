"""Network and image window to fixed-point outputs, block by block, on one device.

The network is evaluated on one fixed grid of blocks whose size is a property of the model.
A block reads its halo and is always computed from the same window, by one thread, whatever
tile asks for it: so tiling, number of jobs and number of threads cannot change one bit.
"""

import contextlib
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from iaunet import fixedpoint, grid, quarantine
from iaunet.net import LAST, IAUNet, Outputs, dependency_radius, of_box
from iaunet.quarantine import Failed

log = logging.getLogger("predict")

CLIP = (-0.5, 2.0)
"""Scaled intensities are cut here before the network sees them."""
STRIP_PX = {2: (64, 1024), 3: (4, 64, 256)}
"""What is brought to fixed point at once on the CPU: its numbers stay in the cache."""


def pick_device(wanted: str) -> torch.device:
    """Return the device for auto, cpu, cuda or cuda:N; CUDA is told to compute reproducibly.

    Raises
    ------
    ValueError
        The wanted device is not there.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda":  # a process that asks CUDA anything cannot be forked
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"device '{wanted}' is not there: {count} CUDA devices found")
    return device


def quantised(outputs: Outputs) -> dict[str, np.ndarray]:
    """Return the outputs of one window (batch of 1) in fixed point, see `fixedpoint`.

    fg and seed have the shape of the window, off and lsig (d, ...), id (16, .../stride); emb
    (E, ...) and sem when the network has these heads. Strip by strip on the CPU.

    Raises
    ------
    FloatingPointError
        An output is NaN.
    """
    maps = {name: value[0] for name, value in outputs._asdict().items() if value is not None}
    maps = {name: maps[name] for name in (*fixedpoint.SCALE, "sem") if name in maps}
    shape, cells = maps["fg"].shape[1:], maps["id"].shape[1:]
    stride = [n // c for n, c in zip(shape, cells, strict=True)]
    strip = shape if maps["fg"].is_cuda else _strip_px(stride)
    made: dict[str, torch.Tensor] = {}
    tops: dict[str, list[torch.Tensor]] = {name: [] for name in maps}
    for box in (tile.core for tile in grid.tiles(shape, strip)):
        part = of_box(maps, box, stride)
        for name, value in part.items():
            tops[name].append(value.amax())  # NaN where any is
        for name, value in hide_background(_fixed(part)).items():
            if name not in made:
                whole = cells if name == "id" else shape
                made[name] = value.new_empty((*value.shape[: value.ndim - len(shape)], *whole))
            made[name][(..., *(grid.cells_of(box, stride) if name == "id" else box))] = value
    undefined = torch.stack([torch.stack(found).amax().isnan() for found in tops.values()])
    names = [name for name, bad in zip(tops, undefined.tolist(), strict=True) if bad]
    if names:
        raise FloatingPointError(f"the network's output is NaN ({', '.join(names)})")
    return {name: one.cpu().numpy().view(fixedpoint.DTYPE[name]) for name, one in made.items()}


def _strip_px(id_stride: Sequence[int]) -> tuple[int, ...]:
    """Return what is brought to fixed point at once: whole cells, few enough for a cache."""
    wanted = STRIP_PX[len(id_stride)]
    return tuple(math.ceil(w / s) * s for w, s in zip(wanted, id_stride, strict=True))


def _fixed(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the outputs as integers."""
    values = {name: value for name, value in maps.items() if name != "sem"}
    for name in ("fg", "seed"):
        values[name] = values[name][0].sigmoid()
    fixed = {name: in_fixed_point(name, value) for name, value in values.items()}
    if "sem" in maps:
        fixed["sem"] = maps["sem"].argmax(0).to(torch.uint8)
    return fixed


def in_fixed_point(name: str, values: torch.Tensor) -> torch.Tensor:
    """Return float outputs of one head as the integers that are stored, where they are.

    Parameters
    ----------
    name : str
        One of fg, seed, off, lsig, id, emb.
    values : float tensor, any shape
        Probability, px, log px or component of a vector; NaN is not allowed.

    Returns
    -------
    tensor of integers as wide as those of `fixedpoint.DTYPE`; seed signed, as it never needs
    its last bit.
    """
    low, high = fixedpoint.RANGE[name]
    width = {1: torch.int8 if low < 0 else torch.uint8, 2: torch.int16}
    scaled = values * fixedpoint.SCALE[name]
    # By way of 16 bits: PyTorch has no vectors from floats to unsigned bytes.
    scaled = scaled.round_().clamp_(low, high).to(torch.int16)
    return scaled.to(width[fixedpoint.DTYPE[name].itemsize])


def hide_background(fixed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the outputs with zeros where fg is below the floor; id where its whole cell is.

    Classes stay: some are of what is no object.
    """
    seen = _seen(fixed["fg"])
    shown = {name: fixed[name] for name in ("fg", "sem") if name in fixed}
    for name in [name for name in fixed if name not in ("fg", "id", "sem")]:
        shown[name] = fixed[name] * seen
    top = fixed["fg"]
    for axis, cells in enumerate(fixed["id"].shape[1:]):
        top = top.unflatten(axis, (cells, -1)).amax(axis + 1)
    shown["id"] = fixed["id"] * _seen(top).to(fixed["id"].dtype)
    return shown


def _seen(fg: torch.Tensor) -> torch.Tensor:
    """Return 1 where fg is at least the floor, else 0; PyTorch has no vectors to compare with."""
    below = fixedpoint.FG_FLOOR - 1
    return fg.clamp(below, below + 1) - below


def whole(net: IAUNet, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the fixed-point outputs of a whole image at once (validation, small images).

    `image` is scaled float32; outputs are cut to its shape (id to the cells that cover it).
    """
    x = laid_out(padded(image, net.stride).to(device_of(net)))
    with torch.inference_mode():
        fixed = quantised(net(x))
    return of_box(fixed, tuple(slice(0, n) for n in image.shape), net.id_stride)


def padded(image: np.ndarray, stride: Sequence[int]) -> torch.Tensor:
    """Return an image as float32 (1, 1, ...), with zeros up to multiples of the stride."""
    more = [(0, -n % step) for n, step in zip(image.shape, stride, strict=True)]
    return torch.from_numpy(np.pad(image, more).astype(np.float32))[None, None]


def device_of(net: torch.nn.Module) -> torch.device:
    """Return where a network is; one without parameters of PyTorch is on the CPU."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def laid_out(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor channels last, in which convolutions are faster."""
    return x.contiguous(memory_format=LAST[x.ndim - 2])


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device or this machine had too little memory for something."""
    few = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return few or "DefaultCPUAllocator" in str(error)  # a plain RuntimeError


class Room:
    """How many blocks are on the device at a time; halved when memory runs out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._inside = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def place(self) -> Iterator[int]:
        """Wait for a place and take it; yield the size at that time."""
        with self._changed:
            self._changed.wait_for(lambda: self._inside < self.size)
            self._inside += 1
            size = self.size
        try:
            yield size
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def halve(self, size: int) -> bool:
        """Halve the size, unless another thread did since it was `size`; False: it was 1."""
        with self._changed:
            if size > 1 and self.size == size:
                self.size = size // 2
                log.warning("out of memory with %d blocks at a time; now %d", size, self.size)
            return size > 1


class Blocks:
    """The network's outputs of one image on the fixed grid of blocks.

    When memory runs out, fewer blocks are computed at a time, which changes no bit; then the block
    that does not fit is computed in halves, each with its whole halo, which may move an output by
    the last step of fixed point. A block that fails twice is given up, see `quarantine`. A window
    of one value all over is computed once: its outputs are those of all that are like it.

    Parameters
    ----------
    net : IAUNet or what stands where it stands
        In evaluation mode, on its device.
    read : callable
        Box inside the image to scaled float32 array.
    shape : d ints
        Of the image.
    block_px, halo_px : d ints
        Multiples of the network's stride.
    threads : int
        How many blocks are computed at the same time, each by one thread.
    """

    def __init__(
        self,
        net: IAUNet,
        read: Callable[[grid.Box], np.ndarray],
        *,
        shape: Sequence[int],
        block_px: Sequence[int],
        halo_px: Sequence[int],
        threads: int,
    ) -> None:
        for name, sizes in (("block", block_px), ("halo", halo_px)):
            if any(size % s for size, s in zip(sizes, net.stride, strict=True)):
                raise ValueError(f"{name} {tuple(sizes)} is no multiple of stride {net.stride}")
        self.net = net
        self.read = read
        self.shape = tuple(shape)
        self.block_px = tuple(block_px)
        self.halo_px = tuple(halo_px)
        self.threads = threads
        self.padded = tuple(-(-n // s) * s for n, s in zip(shape, net.stride, strict=True))
        self.device = device_of(net)
        self.voxels_computed = self.voxels_decoded = 0
        self.n_halved = 0
        self.n_reused = 0
        self.room = Room(threads)
        self.seconds: Counter[str] = Counter()
        self._clock = threading.Lock()
        self._of_constant: dict[tuple, tuple[float, dict[str, np.ndarray]]] = {}

    def compute(self, index: int) -> dict[str, np.ndarray] | Failed:
        """Return the outputs of one block, cut at the image; or why there are none."""
        block = grid.tile(self.padded, self.block_px, index).core
        window = grid.grow(block, self.halo_px, self.padded)
        inside = tuple(
            slice(side.start, min(side.stop, n)) for side, n in zip(window, self.shape, strict=True)
        )
        image = np.zeros(grid.box_shape(window), np.float32)
        with self.timed("reading"):
            image[grid.shift(inside, grid.origin(window))] = self.read(inside)
        inner = grid.shift(block, grid.origin(window))
        fixed = self._of_window(image, inner, index)
        if isinstance(fixed, Failed):
            return fixed
        kept = tuple(
            slice(0, min(side.stop, n) - side.start)
            for side, n in zip(block, self.shape, strict=True)
        )
        return of_box(fixed, kept, self.net.id_stride)

    def _of_window(
        self, image: np.ndarray, inner: grid.Box, index: int
    ) -> dict[str, np.ndarray] | Failed:
        """Return what the network says of a window; of one value all over it may be known."""
        value = image.flat[0] if image.min() == image.max() else None
        place = (image.shape, str(inner))
        known, fixed = self._of_constant.get(place, (None, None))
        if value is not None and value == known:
            self.n_reused += 1
            return fixed
        fixed = quarantine.attempt(lambda: self._evaluated(image, inner), f"block {index}")
        if value is not None and not isinstance(fixed, Failed):
            self._of_constant[place] = value, fixed
        return fixed

    def _evaluated(self, image: np.ndarray, inner: grid.Box) -> dict[str, np.ndarray]:
        """Return the outputs of the inner box of a window; in halves when memory runs out."""
        while True:
            with self.room.place() as size:
                try:
                    return self._run(image, inner)
                except Exception as error:  # all its tensors must be gone before the next try
                    if not is_out_of_memory(error):
                        raise
                    reason = str(error)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if not self.room.halve(size):
                break
        halves = self._halves(inner)
        shape = grid.box_shape(inner)
        if halves is None:
            raise torch.OutOfMemoryError(f"no memory for {shape} px and halo: {reason}")
        axis, boxes = halves
        log.warning("out of memory with one block of %s px; going on with its halves", shape)
        self.n_halved += 1
        parts = []
        for half in boxes:
            window = grid.grow(half, self.halo_px, image.shape)
            half_in_window = grid.shift(half, grid.origin(window))
            parts.append(self._evaluated(image[window], half_in_window))
        last = axis - len(inner)
        return {name: np.concatenate([p[name] for p in parts], axis=last) for name in parts[0]}

    def _run(self, image: np.ndarray, inner: grid.Box) -> dict[str, np.ndarray]:
        """Return what the network says of the inner box of a window."""
        x = laid_out(torch.from_numpy(image)[None, None].to(self.device))
        self.voxels_computed += image.size
        self.voxels_decoded += math.prod(grid.box_shape(inner)) if self.net.cuts else image.size
        with torch.inference_mode():
            with self.timed("network"):
                outputs = self.net.inside(x, inner)
                if self.device.type == "cuda":  # it has only been told what to do
                    torch.cuda.current_stream(self.device).synchronize()
            with self.timed("fixed point"):
                return quantised(outputs)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that something takes to those of its kind."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._clock:
                self.seconds[what] += time.perf_counter() - began

    def _halves(self, inner: grid.Box) -> tuple[int, tuple[grid.Box, grid.Box]] | None:
        """Return the halves of a box along its longest axis; None where halos outweigh them."""
        lengths = grid.box_shape(inner)
        axis = max(range(len(lengths)), key=lengths.__getitem__)
        stride, side = self.net.stride[axis], inner[axis]
        half = -(-lengths[axis] // 2 // stride) * stride
        if half >= lengths[axis] or lengths[axis] <= self.halo_px[axis] // 2:
            return None
        middle = side.start + half
        sides = (slice(side.start, middle), slice(middle, side.stop))
        one, other = ((*inner[:axis], part, *inner[axis + 1 :]) for part in sides)
        return axis, (one, other)

    def of_cores(self, cores: Sequence[grid.Box]) -> Iterator[dict[str, np.ndarray] | Failed]:
        """Yield the outputs of every core in turn; a block is computed once, and a few ahead.

        A core that needs a block which failed has failed.
        """
        needed = [grid.tiles_meeting(self.padded, self.block_px, core) for core in cores]
        first: dict[int, int] = {}  # the number of the core that needs a block first; and last
        last: dict[int, int] = {}
        for number, indices in enumerate(needed):
            for index in indices:
                first.setdefault(index, number)
                last[index] = number
        coming = deque(first)
        done: dict[int, Future] = {}
        torch.set_num_threads(1)
        with ThreadPoolExecutor(self.threads) as pool:
            for number, (core, indices) in enumerate(zip(cores, needed, strict=True)):
                n_ahead = sum(first[index] > number for index in done)
                while coming and (first[coming[0]] <= number or n_ahead < 2 * self.threads):
                    index = coming.popleft()
                    n_ahead += first[index] > number
                    done[index] = pool.submit(self.compute, index)
                yield self._assemble(core, {index: done[index].result() for index in indices})
                for index in indices:
                    if last[index] == number:
                        del done[index]

    def _assemble(
        self, core: grid.Box, blocks: dict[int, dict | Failed]
    ) -> dict[str, np.ndarray] | Failed:
        failed = [found for found in blocks.values() if isinstance(found, Failed)]
        if failed:
            return failed[0]
        if len(blocks) == 1 and next(iter(blocks.values()))["fg"].shape == grid.box_shape(core):
            return next(iter(blocks.values()))
        cells = grid.cells_of(core, self.net.id_stride)
        out: dict[str, np.ndarray] = {}
        for index, fixed in blocks.items():
            block = grid.tile(self.padded, self.block_px, index).core
            block_cells = grid.cells_of(block, self.net.id_stride)
            for name, array in fixed.items():
                target, source = (cells, block_cells) if name == "id" else (core, block)
                if name not in out:
                    lead = array.shape[: array.ndim - len(core)]
                    out[name] = np.zeros((*lead, *grid.box_shape(target)), array.dtype)
                both = grid.intersection(target, source)
                if both is not None:
                    to = (..., *grid.shift(both, grid.origin(target)))
                    out[name][to] = array[(..., *grid.shift(both, grid.origin(source)))]
        return out


def model_facts(net: IAUNet) -> dict[str, object]:
    """Return what a model file says of its network, as far as the network tells."""
    return {
        "ndim": net.ndim,
        "in_channels": 1,
        "net": net.options,
        "stride": list(net.stride),
        "id_stride": list(net.id_stride),
        "radius": list(dependency_radius(net)),
        "block": default_block(net.ndim, net.stride),
        "max_offset": net.options["max_offset"],
        "max_sigma": net.options["max_sigma"],
    }


def default_block(ndim: int, stride: Sequence[int]) -> list[int]:
    """Return the block size that a new model gets: large against its halo."""
    wanted = {2: (1024, 1024), 3: (64, 256, 256)}[ndim]
    return [math.ceil(w / s) * s for w, s in zip(wanted, stride, strict=True)]
