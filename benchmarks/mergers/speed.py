r"""Time and peak memory of ours and of dask-image, from tiles in memory to labels in memory.

Each run is a fresh process with one thread; both get the same tiles, and take turns.

Example
-------
    python benchmarks/mergers/speed.py --data ../shared/data --work speed \
        --output docs/mergers_speed.md
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

import cases
import rules
import truths
from iaunet import cli
from iaunet.errors import InputError

log = logging.getLogger("speed")

RULES = ("face touch", "ours")
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
VOLUMES = {
    "connectomics 512": lambda data: truths.read(data, "connectomics"),
    "balls 512": lambda data: truths.balls(512, 2500, np.random.default_rng(5)),
    "balls 1024": lambda data: truths.balls(1024, 100_000, np.random.default_rng(6)),
}
CUTS = {
    "overlap 32": cases.Cut("overlap 32", (128, 128, 128), 16),
    "abutting": cases.Cut("abutting", (128, 128, 128), 0),
    "overlap 32, large tiles": cases.Cut("overlap 32, large tiles", (256, 256, 256), 16),
}
DEFAULT = ("connectomics 512:overlap 32", "connectomics 512:abutting", "balls 512:overlap 32")

HEAD = (
    "# Time and memory beside dask-image",
    "",
    "From the tiles in memory to the labels in memory, one thread, fresh processes that take",
    "turns, the fastest of some runs; made by `benchmarks/mergers/speed.py`. Seconds depend on",
    "what else the machine does, CPU seconds less so. dask-image reads the cores only, ours the",
    "whole tiles. A ratio is dask-image's value over ours.",
    "",
    "| volume | tiles | objects | rule | seconds | CPU seconds | GB more than the tiles "
    "| objects found |",
    "|-|-|-|-|-|-|-|-|",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has labels_only/")
    parser.add_argument("--work", type=Path, required=True, help="folder for tiles, kept")
    parser.add_argument("--output", type=Path, help="Markdown table to write")
    parser.add_argument("--what", nargs="+", default=DEFAULT, help="VOLUME:CUT")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    parser.add_argument("--one", choices=RULES, help="time only this rule, in this process")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table, or print the times of one run."""
    args = parse_args(argv)
    if args.one:
        print(json.dumps(measured(folder_of(args, args.what[0]), args.one)))  # noqa: T201
        return
    lines = list(HEAD)
    for what in args.what:
        n_true = make_tiles(args, what)
        best: dict[str, dict[str, float]] = {}
        for _ in range(args.repeats):
            for rule in RULES:
                found = fresh(args, what, rule)
                log.info("%s, %s: %s", what, rule, found)
                if rule not in best or found["cpu"] < best[rule]["cpu"]:
                    best[rule] = found
        volume, cut = what.split(":")
        for rule, found in best.items():
            lines.append(
                f"| {volume} | {cut} | {n_true} | {rule} | {found['wall']:.1f} | "
                f"{found['cpu']:.1f} | {found['gb']:.1f} | {found['objects']} |"
            )
        wall, cpu = (best[RULES[0]][key] / best[RULES[1]][key] for key in ("wall", "cpu"))
        lines.append(f"| | | | ratio | {wall:.1f} | {cpu:.1f} | | |")
        log.info("%s: ratio %.1f, of CPU time %.1f", what, wall, cpu)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


def folder_of(args: argparse.Namespace, what: str) -> Path:
    """Return the folder of the tiles of a volume and a cut."""
    return args.work / what.replace(" ", "_").replace(":", "-").replace(",", "")


def make_tiles(args: argparse.Namespace, what: str) -> int:
    """Write the tiles of a volume once; return how many objects it has."""
    folder = folder_of(args, what)
    about = folder / "about.json"
    if not about.exists():
        volume, _, cut = what.partition(":")
        if volume not in VOLUMES or cut not in CUTS:
            raise InputError(f"--what: {what}; needs one of {list(VOLUMES)} : {list(CUTS)}")
        truth = VOLUMES[volume](args.data)
        folder.mkdir(parents=True, exist_ok=True)
        windows, cores = CUTS[cut].boxes(truth.shape)
        rng = np.random.default_rng(0)
        for number, window in enumerate(windows):
            np.save(folder / f"{number}.npy", cases.shuffled(truth[window], rng))
        boxes = [
            [[(side.start, side.stop) for side in box] for box in some] for some in (windows, cores)
        ]
        n_objects = np.count_nonzero(np.bincount(truth.ravel())[1:])
        about.write_text(
            json.dumps({"boxes": boxes, "shape": truth.shape, "objects": int(n_objects)})
        )
    return json.loads(about.read_text())["objects"]


def fresh(args: argparse.Namespace, what: str, rule: str) -> dict[str, float]:
    """Return what a run of one rule in a process of its own took."""
    options = [f"--data={args.data}", f"--work={args.work}", f"--what={what}", f"--one={rule}"]
    done = subprocess.run(
        [sys.executable, __file__, *options],
        env={**os.environ, **dict.fromkeys(THREADS, "1")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def measured(folder: Path, rule: str) -> dict[str, float]:
    """Return wall and CPU seconds, GB above those of the tiles, and how many objects came out."""
    about = json.loads((folder / "about.json").read_text())
    windows, cores = (
        [tuple(slice(*side) for side in box) for box in some] for some in about["boxes"]
    )
    tiles = [np.load(folder / f"{number}.npy") for number in range(len(windows))]
    warm_up(rule)
    before = memory("VmRSS")
    began = time.perf_counter(), time.process_time()
    found = rules.RULES[rule](tiles, windows, cores, tuple(about["shape"]))
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    peak = memory("VmHWM") - before
    n_objects = np.count_nonzero(np.bincount(found.ravel())[1:])
    return {"wall": wall, "cpu": cpu, "gb": peak, "objects": int(n_objects)}


def warm_up(rule: str) -> None:
    """Run a rule on next to nothing: imports and compiled functions are not timed."""
    tiny = np.zeros((4, 4, 4), dtype=np.uint32)
    tiny[1:, 1:] = 1
    windows = [(slice(a, a + 4), slice(0, 4), slice(0, 4)) for a in (0, 2)]
    cores = [(slice(a, b), slice(0, 4), slice(0, 4)) for a, b in ((0, 3), (3, 6))]
    rules.RULES[rule]([tiny, tiny], windows, cores, (6, 4, 4))


def memory(name: str) -> float:
    """Return a line of this process's status, GB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1e6
    raise RuntimeError(f"no {name} in /proc/self/status; needs Linux")


if __name__ == "__main__":
    cli.run(main)
