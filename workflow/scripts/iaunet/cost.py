"""What an image costs, told from its size and its model alone: memory, time and disk of each step.

The rules ask for `mem_mb` and `runtime_min`, which have room for a slower machine; `plan.py`
shows `peak_mb`, `cpu_seconds` and `disk_mb`, which `provenance.json` can be compared with.

The constants were measured on one core of an AMD EPYC (Zen 4), torch 2.13, by the records of

    snakemake --cores 1                                      the demo, and 8192 x 8192 px of it
    python benchmarks/scale/run.py --work W --output O --sizes 4096x4096 24000x24000 128x512x512

and, for the memory of the network, by infer.py with one thread in float32 on drawn nuclei, see
`tests/unit/test_cost.py`; bfloat16 takes some 60 % of it, int8 some 40 %.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from iaunet import grid, scale

MVOXEL = 1e6
STEPS = ("tile", "infer", "cluster", "number", "paint", "stitch", "measure", "report")
PARTED = ("number", "paint")
"""Steps of an image whose labels several jobs write."""

START_MB = 260
"""Python with torch; the steps without it need less."""
WIDTH = 16
"""Channels of the first layer of the networks that were measured."""
UNKNOWN_WIDTH = 32
"""Taken of networks from elsewhere."""
ENCODER_MB = {2: 150.0, 3: 100.0}
"""Per million voxels of the window that one thread computes, halo included."""
DECODER_MB = {2: 820.0, 3: 480.0}
"""More per million voxels of the block, which is all that the decoder computes."""
ENCODER_SHARE = 0.3
"""Of the network's time when there is no halo."""
AHEAD_BYTES = 20
"""Per voxel of blocks that are computed and not written yet; `PENDING` and two per thread."""
PENDING = 5
ASKED_MB = {2: 600, 3: 900}
"""More in tile.py when the network is asked how large the objects are."""
READ_MB = 150
"""Of an image that is copied, at most."""
MEASURED_PX = {2: (2048, 2048), 3: (64, 512, 512)}
"""What measure.py holds at once."""
SHOWN_MVOXEL = 3.0
"""What report.py holds at once, about."""
STEP_MB = {"tile": 145, "cluster": 280, "number": 250, "paint": 255}
STEP_MB |= {"stitch": 255, "measure": 270, "report": 265}
"""Of a step without any image."""
CORE_MB = {"paint": 52, "stitch": 52}
"""Per million voxels of the core of a tile."""
LABELLED_MB = {2: 12, 3: 15}
"""Per million voxels that a thread of cluster.py labels at once."""
LABELLED_MVOXEL = 67.2
"""Of these, at most, unless a tile is larger."""
HELD_MB = {"measure": {2: 33, 3: 15}, "report": {2: 50, 3: 80}}
"""Per million voxels of the image that is held at once."""
OBJECT_BYTES = {"cluster": 1300, "number": 1600, "paint": 100}
OBJECT_BYTES |= {"stitch": 1600, "measure": 1000, "report": 500}
"""Per object of the image, of cluster.py of the batch."""

MARGIN_MB = 500
"""For Snakemake, which runs inside a cluster job as well."""
ROOM = 1.25
SLOWER = 5
SHORTEST_MIN = {"infer": 120}
SHORTEST_MIN |= {step: 30 for step in STEPS if step != "infer"}


@dataclass(frozen=True)
class Size:
    """What the cost of an image depends on.

    Attributes
    ----------
    shape, grid_shape : px of the image, and of the grid that the network works on, as far as
        that is known before the image is read.
    itemsize : bytes per voxel.
    core, block, halo : px, of a tile, and of what the network computes at once.
    width : channels of the network's first layer.
    cuts : whether the network's decoder computes the block alone.
    asks : whether the network is asked how large the objects are.
    """

    shape: tuple[int, ...]
    grid_shape: tuple[int, ...]
    itemsize: int
    core: tuple[int, ...]
    block: tuple[int, ...]
    halo: tuple[int, ...]
    width: int
    cuts: bool
    asks: bool
    n_batches: int
    n_parts: int

    @classmethod
    def from_dict(cls, values: Mapping) -> "Size":
        """Return the size that JSON stored."""
        told = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in told.items()})

    @property
    def voxels(self) -> float:
        """Millions, of the image."""
        return math.prod(self.shape) / MVOXEL

    @property
    def grid_voxels(self) -> float:
        """Millions, of the network's grid."""
        return math.prod(self.grid_shape) / MVOXEL

    @property
    def window_voxels(self) -> float:
        """Millions, of the largest window that the network sees."""
        sides = zip(self.block, self.halo, self.grid_shape, strict=True)
        return math.prod(min(b + 2 * h, n) for b, h, n in sides) / MVOXEL

    @property
    def computed_voxels(self) -> float:
        """Millions, of all blocks with their halo, when no block is in two batches."""
        per_axis = []
        for n, block, halo in zip(self.grid_shape, self.block, self.halo, strict=True):
            starts = range(0, n, block)
            per_axis.append(sum(min(n, at + block + halo) - max(0, at - halo) for at in starts))
        return math.prod(per_axis) / MVOXEL

    @property
    def network_voxels(self) -> float:
        """Millions, as if the network had no halo and took as long."""
        return worked(self.computed_voxels, self.grid_voxels if self.cuts else self.computed_voxels)

    @property
    def n_tiles(self) -> int:
        """Of the network's grid."""
        return grid.n_tiles(self.grid_shape, self.core)


def worked(encoded: float, decoded: float) -> float:
    """Return the voxels without halo for which the network takes as long."""
    return ENCODER_SHARE * encoded + (1 - ENCODER_SHARE) * decoded


@dataclass(frozen=True)
class Rates:
    """How fast a machine is, and how full the images are.

    Attributes
    ----------
    network, cluster : CPU seconds per million voxels, the network's without halo.
    tile, stitch, measure : the same, of the image.
    asking : CPU seconds of asking the network how large the objects are.
    objects : per million voxels.
    image_bytes, output_bytes, label_bytes : on disk per voxel.
    zoom : length of the network's grid per axis of the image, where it is not known otherwise.
    source : where the numbers come from.
    """

    network: float
    cluster: float
    tile: float
    stitch: float
    measure: float
    asking: float
    objects: float
    image_bytes: float
    output_bytes: float
    label_bytes: float
    zoom: tuple[float, ...] = ()
    source: str = "constants of cost.py"


RATES = {
    2: Rates(
        network=0.9,
        cluster=0.07,
        tile=0.03,
        stitch=0.03,
        measure=0.05,
        asking=4,
        objects=450,
        image_bytes=1.1,
        output_bytes=2.5,
        label_bytes=0.08,
    ),
    3: Rates(
        network=0.7,
        cluster=0.15,
        tile=0.03,
        stitch=0.05,
        measure=0.1,
        asking=12,
        objects=300,
        image_bytes=2.2,
        output_bytes=4.0,
        label_bytes=0.1,
    ),
}
"""By the axes of the image; what is used where nothing was measured. The network in bfloat16: int8
takes 0.6 of it, float32 2 to 3 times."""
STARTING = {"tile": 1.0, "infer": 2.2, "cluster": 1.4, "number": 1.3, "paint": 1.3}
STARTING |= {"stitch": 1.3, "measure": 1.6, "report": 2.3}
"""CPU seconds of a job before its first voxel."""
LOOKING = 0.3
"""CPU seconds per million voxels of looking for the brightest window, to ask the network there."""
ROW_BYTES = 420
"""On disk per object: CSV, Parquet and seams."""
LEAST_BYTES = 1e5
"""On disk of an image without objects; its page, of about 2 MB, is not counted."""


def steps_of(size: Size) -> tuple[str, ...]:
    """Return the steps of an image."""
    return tuple(step for step in STEPS if size.n_parts > 1 or step not in PARTED)


def n_jobs(step: str, size: Size) -> int:
    """Return how many jobs a step of an image has."""
    if step in ("infer", "cluster"):
        return size.n_batches
    return size.n_parts if step == "paint" else 1


def peak_mb(step: str, size: Size, *, threads: int = 1, rates: Rates | None = None) -> float:
    """Return the largest memory of one job of a step, MiB."""
    rates, ndim = rates or RATES[len(size.shape)], len(size.shape)
    if step == "infer":
        block = math.prod(map(min, size.block, size.grid_shape)) / MVOXEL
        decoded = block if size.cuts else size.window_voxels
        per_thread = ENCODER_MB[ndim] * size.window_voxels + DECODER_MB[ndim] * decoded
        per_thread *= size.width / WIDTH
        ahead = (PENDING + 2 * threads) * math.prod(size.block) * AHEAD_BYTES / 2**20
        return START_MB + threads * per_thread + min(ahead, AHEAD_BYTES * size.grid_voxels)
    objects = rates.objects * size.voxels / (size.n_batches if step == "cluster" else 1)
    core = math.prod(map(min, size.core, size.grid_shape)) / MVOXEL
    held = math.prod(map(min, MEASURED_PX[ndim], size.shape)) / MVOXEL
    held = held if step == "measure" else min(SHOWN_MVOXEL, size.voxels)
    found = STEP_MB[step] + objects * OBJECT_BYTES.get(step, 0) / 2**20
    found += CORE_MB.get(step, 0) * core
    if step == "cluster":
        window = max(LABELLED_MVOXEL, core)
        found += LABELLED_MB[ndim] * min(threads * window, size.grid_voxels)
    found += HELD_MB.get(step, {}).get(ndim, 0) * held
    if step == "tile":
        found += min(READ_MB, 3 * size.voxels * size.itemsize) + ASKED_MB[ndim] * size.asks
    return found


def cpu_seconds(step: str, size: Size, *, rates: Rates | None = None) -> float:
    """Return the CPU seconds of all jobs of a step together, on one device."""
    rates = rates or RATES[len(size.shape)]
    jobs = n_jobs(step, size)
    per_voxel = {
        "tile": rates.tile * size.voxels + (rates.asking + LOOKING * size.voxels) * size.asks,
        "infer": rates.network * size.network_voxels,
        "cluster": rates.cluster * size.grid_voxels,
        "stitch": rates.stitch * size.voxels,
        "paint": rates.stitch * size.voxels,
        "measure": rates.measure * size.voxels,
    }
    return jobs * STARTING[step] + per_voxel.get(step, 0.0)


def disk_mb(size: Size, *, rates: Rates | None = None) -> tuple[float, float]:
    """Return the largest temporary and the final size on disk of an image, 10^6 bytes."""
    rates = rates or RATES[len(size.shape)]
    labels = rates.label_bytes * size.grid_voxels
    temporary = rates.image_bytes * size.voxels + rates.output_bytes * size.grid_voxels + labels
    final = (rates.image_bytes + rates.label_bytes) * size.voxels
    return temporary, final + (rates.objects * size.voxels * ROW_BYTES + LEAST_BYTES) / MVOXEL


def mem_mb(step: str, size: Size, *, threads: int = 1) -> int:
    """Return the memory that a job should ask for at its first attempt, MB."""
    return 100 * math.ceil((MARGIN_MB + ROOM * peak_mb(step, size, threads=threads)) / 100)


def runtime_min(step: str, size: Size) -> int:
    """Return the minutes that a job with one thread should ask for at its first attempt."""
    minutes = SLOWER * cpu_seconds(step, size) / n_jobs(step, size) / 60
    return SHORTEST_MIN[step] + math.ceil(minutes)


def asked(size: Size) -> dict[str, dict[str, int]]:
    """Return what the jobs of each step ask for: mem_mb, mem_mb_per_thread more, runtime_min."""
    found = {}
    for step in steps_of(size):
        one, two = (mem_mb(step, size, threads=n) for n in (1, 2))
        found[step] = {
            "mem_mb": one,
            "mem_mb_per_thread": two - one,
            "runtime_min": runtime_min(step, size),
        }
    return found


def measured(steps: Sequence[Mapping], source: str) -> Rates | None:
    """Return the rates that the records of tile, infer and cluster of an image tell.

    None when they do not tell: an image without voxels to cluster, or records of an older version.
    """
    known = {step["step"]: step for step in steps}
    try:
        tile, infer, cluster = (known[name] for name in ("tile", "infer", "cluster"))
        shape, to = tile["shape"], tile["grid_shape"]
        voxels, grid_voxels = (math.prod(sides) / MVOXEL for sides in (shape, to))
        rates = RATES[len(shape)]
        clock = "network_cpu_seconds" if infer["device"] == "cpu" else "network_seconds"
        asking = tile["cpu_seconds"] - STARTING["tile"] - (rates.tile + LOOKING) * voxels
        network_voxels = worked(infer["voxels_computed"], infer["voxels_decoded"])
        return replace(
            rates,
            network=infer[clock] / network_voxels * MVOXEL,
            cluster=cluster["clustering_seconds"] / grid_voxels,
            asking=max(0.0, asking),
            objects=cluster["n_objects"] / voxels,
            image_bytes=tile["output_bytes"] / voxels / MVOXEL,
            output_bytes=infer["output_bytes"] / grid_voxels / MVOXEL,
            label_bytes=cluster["output_bytes"] / grid_voxels / MVOXEL,
            zoom=tuple(m / n for m, n in zip(to, shape, strict=True)),
            source=source,
        )
    except (KeyError, ZeroDivisionError):
        return None


def middle(found: Sequence[Rates]) -> Rates:
    """Return the median of every rate, for images of as many axes."""
    names = [field.name for field in fields(Rates) if field.name not in ("zoom", "source")]
    of = {name: statistics.median(getattr(rates, name) for rates in found) for name in names}
    zoom = tuple(statistics.median(axis) for axis in zip(*(r.zoom for r in found), strict=True))
    return Rates(**of, zoom=zoom, source=found[0].source)


def taken(provenance: Mapping) -> dict[str, float]:
    """Return what an image took, under the names that the plan of a run has for it.

    The page of the image is made later than its provenance, and not in it.
    """
    steps = provenance["steps"]
    clock = [
        step.get("cpu_seconds" if step.get("device", "cpu") == "cpu" else "seconds", 0)
        for step in steps
    ]
    written = [step.get("output_bytes", 0) for step in steps]
    made = [facts["bytes"] for facts in provenance.get("outputs", {}).values()]
    return {
        "core_hours": round(sum(clock) / 3600, 5),
        "temporary_mb": sum(written) / MVOXEL,
        "final_mb": sum(made) / MVOXEL,
        **{f"peak_mb_{step['step']}": step["peak_memory_mb"] for step in steps},
    }


def on_grid(size: Size, rates: Rates) -> Size:
    """Return the size with the network's grid as it was found on a part of a like image."""
    if not size.asks or not rates.zoom:
        return size
    return replace(size, grid_shape=scale.grid_shape(size.shape, rates.zoom))
