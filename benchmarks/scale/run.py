r"""Memory and time of cluster.py, stitch.py and measure.py against the size of an image.

The network's outputs are drawn (see `drawn.py`), so that only the steps after it are measured.
Every job is a process of its own with one thread, as in a run of the workflow.

Example
-------
    python benchmarks/scale/run.py --work /tmp/scale --output docs/scale \\
        --sizes 12500x12500 35355x35355 100000x100000 512x512x512 1024x1024x1024 2048x2048x2048
"""

import argparse
import io
import json
import logging
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

import drawn

from iaunet import checksums, chunks, cli, omezarr
from iaunet.errors import OptionError

log = logging.getLogger("scale")

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = {2: "nuclei-2d", 3: "nuclei-3d"}
N_OBJECTS = {2: 100, 3: 60}
STEPS = ("cluster", "stitch", "measure")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", required=True, help="shapes, 512x512x512 and so on")
    parser.add_argument("--work", type=Path, required=True, help="folder for the stores")
    parser.add_argument("--output", type=Path, required=True, help="folder for table and figure")
    parser.add_argument("--objects", type=int, help="objects per tile (default 100 in 2D, 60)")
    return parser.parse_args(argv)


def step(name: str, record: Path, *options: object) -> dict:
    """Run a step; return its record."""
    script = REPOSITORY / "workflow/scripts" / f"{name}.py"
    command = [sys.executable, script, *options, "--record", record]
    subprocess.run([str(word) for word in command], check=True, stderr=subprocess.PIPE, text=True)
    return json.loads(record.read_text())


def run(shape: Sequence[int], work: Path, n_objects: int) -> list[dict]:
    """Draw an image, run the steps and return a row for each."""
    folder = work / "x".join(map(str, shape))
    shutil.rmtree(folder, ignore_errors=True)
    model = REPOSITORY / "resources/models" / f"{MODELS[len(shape)]}.safetensors"
    meta = {"name": MODELS[len(shape)], "sha256": checksums.sha256(model)}
    n_batches = drawn.write(folder, shape, n_objects, meta)
    records = {
        name: [step(name, folder / f"{name}-{k}.json", *words) for k, words in enumerate(jobs)]
        for name, jobs in drawn.options(folder, model, n_batches).items()
    }
    result = folder / "drawn.ome.zarr"
    stores = [folder / "labels" / f"{batch}.zarr" for batch in range(n_batches)]
    with zarr.config.set(chunks.ZARRS_OWN):
        copying = copy_seconds(result, folder / "copy.zarr", stores, folder / "tiles.json")
    n = json.loads((folder / "metrics.json").read_text())["n_objects"]
    rows = [
        {
            "shape": " x ".join(f"{n:,}" for n in shape),
            "voxels": math.prod(shape),
            "objects": n,
            "step": name,
            "jobs": len(records[name]),
            "cpu_seconds": sum(record["cpu_seconds"] for record in records[name]),
            "peak_memory_mb": max(record["peak_memory_mb"] for record in records[name]),
        }
        for name in STEPS
    ]
    rows.append(
        rows[1] | {"step": "copy", "jobs": 1, "cpu_seconds": copying, "peak_memory_mb": np.nan}
    )
    return rows


def copy_seconds(result: Path, path: Path, stores: Sequence[Path], tiles: Path) -> float:
    """Return CPU seconds of reading the labels of all batches and writing all final levels.

    What stitch.py has to read and write at least, by zarr alone and in its own way: no tables, no
    numbers looked up, no levels made, and without the start of Python and the import of zarr.
    """
    runs = json.loads(tiles.read_text())
    shape = omezarr.open_labels(result).shape
    seconds = -time.process_time()
    for store, (first, end) in zip(stores, runs["batches"], strict=True):
        labels = zarr.open_array(store / "labels", mode="r")
        for index in range(first, end):
            labels[drawn.grid.tile(shape, runs["core"], index).core]
    seconds += time.process_time()
    for level in range(len(omezarr.read_meta(result).levels)):
        final = omezarr.open_labels(result, level=level)
        copy = zarr.create_array(
            path / str(level), shape=final.shape, dtype=final.dtype, chunks=final.chunks,
            shards=final.shards, compressors=final.compressors,
        )  # fmt: skip
        for box in omezarr.shard_boxes(final):
            values = final[box]
            seconds -= time.process_time()
            copy[box] = values
            seconds += time.process_time()
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Run all sizes and write the table."""
    args = parse_args(argv)
    shapes = [tuple(int(n) for n in size.split("x")) for size in args.sizes]
    if any(len(shape) not in (2, 3) for shape in shapes):
        raise OptionError("--sizes: needs YxX or ZxYxX")
    rows = []
    args.output.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        rows += run(shape, args.work, args.objects or N_OBJECTS[len(shape)])
        table = pd.DataFrame(rows)
        log.info("\n%s", table.tail(4).to_string())
        table.to_csv(args.output / "scale.csv", index=False)
        (args.output / "scale.png").write_bytes(figure(table))


def figure(table: pd.DataFrame) -> bytes:
    """Return time and memory of every step against the number of voxels, 2D and 3D."""
    ndim = table["shape"].str.count(" x ") + 1
    drawing, axes = plt.subplots(2, 2, figsize=(9, 7), sharex="col", layout="constrained")
    for column, (n, some) in enumerate(table.groupby(ndim)):
        for name, rows in some.groupby("step", sort=False):
            style = {"marker": "o", "label": name, "linestyle": "--" if name == "copy" else "-"}
            axes[0, column].plot(rows["voxels"], rows["cpu_seconds"], **style)
            axes[1, column].plot(rows["voxels"], rows["peak_memory_mb"], **style)
        axes[0, column].set(
            title=f"{n}D", ylabel="CPU seconds, all jobs", xscale="log", yscale="log"
        )
        axes[1, column].set(xlabel="voxels", ylabel="largest job's peak memory, MB", ylim=(0, None))
    axes[0, 0].legend()
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


if __name__ == "__main__":
    cli.run(main)
