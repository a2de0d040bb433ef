r"""CPU time of our measurements and of one call of scikit-image, of the same objects.

Ours reads labels and image block by block from an OME-Zarr store; scikit-image has both in memory.
The values are compared as well. One thread; each gets a process of its own, the two take turns.

Example
-------
    python benchmarks/measuring/speed.py --work /tmp/measuring --output docs/measuring.md
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

import measure
from iaunet import cli, features, grid, omezarr

CASES = {
    "2D, 8,192 x 8,192": ((8192, 8192), 36),
    "3D, 64 x 768 x 768": ((64, 768, 768), 24),
}
OURS = {
    "label": "label",
    "area_px": "area",
    "mean_intensity_0": "intensity_mean",
    "std_intensity_0": "intensity_std",
    "min_intensity_0": "intensity_min",
    "max_intensity_0": "intensity_max",
    "equivalent_diameter_px": "equivalent_diameter_area",
    "axis_major_px": "axis_major_length",
    "axis_minor_px": "axis_minor_length",
    "extent": "extent",
    "solidity": "solidity",
    "perimeter_px": "perimeter",
    "eccentricity": "eccentricity",
}
VOLUME = {"volume_px": "area"}
PLACES = ("bbox", "centroid")
NOT_IN_3D = ("perimeter_px", "eccentricity")
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the drawn stores")
    parser.add_argument("--output", type=Path, help="Markdown table to write")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts (default 3)")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "STORE"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def draw(path: Path, shape: Sequence[int], pitch: int) -> None:
    """Write a store of blunt ellipsoids, one per cell of a grid, of noisy brightness."""
    rng = np.random.default_rng(1)
    labels, image = np.zeros(shape, np.uint32), rng.integers(80, 120, shape, dtype=np.uint16)
    half = pitch // 2
    offsets = np.indices((pitch,) * len(shape)) - half
    for label, corner in enumerate(np.ndindex(*(n // pitch for n in shape)), start=1):
        turn = np.linalg.qr(rng.normal(size=(len(shape),) * 2))[0]
        radii = rng.uniform(0.25, 0.55, len(shape)) * pitch
        inside = (np.abs(np.tensordot(turn, offsets, 1).T / radii) ** 2.5).sum(-1).T < 1
        box = tuple(slice(k * pitch, (k + 1) * pitch) for k in corner)
        labels[box][inside] = label
        image[box][inside] += rng.integers(100, 60_000, dtype=np.uint16)
    axes = "zyx"[-len(shape) :]
    omezarr.create_image(path, shape, axes, np.uint16, None, "drawn", {"channel": "0"})
    of_labels = omezarr.add_labels(path, "instances", np.uint32)
    of_image = omezarr.open_level(path, mode="r+")
    for array, values in ((of_labels, labels), (of_image, image)):
        for box in omezarr.shard_boxes(array):
            array[box] = values[box]


def ours(path: Path) -> tuple[float, float, dict[str, np.ndarray]]:
    """Return CPU seconds, those of reading alone, and the table."""
    labels, image = omezarr.open_labels(path), omezarr.open_level(path)
    block = measure.BLOCK_PX[labels.ndim]
    began = time.process_time()
    for tile in grid.tiles(labels.shape, block):
        labels[tile.core], image[tile.core]
    reading = time.process_time() - began
    small = tuple(slice(0, 64) for _ in labels.shape)
    options = {"block_px": block, "pixel_um": None, "channel": "0"}
    features.measure_objects(labels[small], image[small], **options)  # compiles
    began = time.process_time()
    table = features.measure_objects(labels, image, **options)
    return time.process_time() - began, reading, table


def theirs(path: Path) -> tuple[float, float, dict[str, np.ndarray]]:
    """Return CPU seconds, 0 and the table of scikit-image, of arrays in memory."""
    from skimage.measure import regionprops_table

    labels, image = omezarr.open_labels(path)[...], omezarr.open_level(path)[...]
    names = {k: v for k, v in OURS.items() if labels.ndim == 2 or k not in NOT_IN_3D}
    began = time.process_time()
    found = regionprops_table(labels, image, properties=[*names.values(), *PLACES])
    return time.process_time() - began, 0.0, {k: found[v] for k, v in names.items()}


def run(who: str, store: Path) -> dict[str, float]:
    """Measure in a fresh process."""
    env = {**os.environ, **dict.fromkeys(THREADS, "1")}
    command = [sys.executable, __file__, "--work", ".", "--one", who, str(store)]
    found = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def difference(store: Path) -> float:
    """Return the largest relative difference of a value, of those above 0.001."""
    mine, other = (np.load(f"{store}.{who}.npz") for who in ("ours", "theirs"))
    worst = 0.0
    for name in other.files:
        a = mine["volume_px" if name not in mine.files else name].astype(float)
        b = other[name].astype(float)
        worst = max(worst, float((np.abs(a - b) / np.maximum(np.abs(b), 1e-3)).max()))
    return worst


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, measure and print."""
    args = parse_args(argv)
    if args.one:
        who, store = args.one
        seconds, reading, table = {"ours": ours, "theirs": theirs}[who](Path(store))
        np.savez(f"{store}.{who}.npz", **table)
        facts = {"seconds": seconds, "reading": reading, "objects": len(table["label"])}
        print(json.dumps(facts))  # noqa: T201
        return
    lines = [
        "# Measuring beside scikit-image",
        "",
        "CPU seconds of one thread, the fastest of some runs in processes of their own that take",
        "turns; made by `benchmarks/measuring/speed.py`. Ours reads an OME-Zarr store block by",
        "block, `regionprops_table` has the arrays in memory. Both give size, place, box, four",
        "values of brightness and all shapes of `objects.csv`. The last column is the largest",
        "relative difference of any value.",
        "",
        "| image | objects | ours | of it reading | scikit-image | ratio | difference |",
        "|-|-|-|-|-|-|-|",
    ]
    for k, (name, (shape, pitch)) in enumerate(CASES.items()):
        store = args.work / f"drawn-{k}.zarr"
        if not store.exists():
            with cli.write_whole(store) as partial:
                draw(partial, shape, pitch)
        best: dict[str, dict[str, float]] = {}
        for _ in range(args.repeats):
            for who in ("ours", "theirs"):
                found = run(who, store)
                if who not in best or found["seconds"] < best[who]["seconds"]:
                    best[who] = found
        mine, other = best["ours"], best["theirs"]
        lines.append(
            f"| {name} | {mine['objects']:,} | {mine['seconds']:.2f} | {mine['reading']:.2f} "
            f"| {other['seconds']:.1f} | {other['seconds'] / mine['seconds']:.0f} "
            f"| {difference(store):.0e} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)  # noqa: T201
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    cli.run(main)
