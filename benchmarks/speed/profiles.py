r"""Where the CPU time of every step goes: seconds of its parts, see `spent.py`.

The images of `run.py --parts network`, in turn through all steps, each in a fresh process with
one thread; of `--repeats` runs of a step the one that took least counts.

Example
-------
    python benchmarks/speed/profiles.py --work /tmp/speed --output docs/benchmarks/profiles.csv
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import spent

import run
from iaunet import cli

log = logging.getLogger("profiles")

REST, END = "all the rest", "end of Python"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for images and stores")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts (default 3)")
    return parser.parse_args(argv)


def profile(name: str, folder: Path, options: Sequence[object]) -> dict[str, float]:
    """Run a step; return CPU seconds of its parts, from the start of Python to its end."""
    found = folder / f"{name}-spent.json"
    command = [sys.executable, Path(spent.__file__), found, name, *options]
    environment = os.environ | run.ONE_THREAD
    before = used()
    subprocess.run([str(w) for w in command], check=True, env=environment, capture_output=True)
    facts = json.loads(found.read_text())
    end = used() - before - facts["until_end"]
    rest = facts["until_end"] - facts["wrapping"] - sum(facts["parts"].values())
    return facts["parts"] | {REST: rest, END: end}


def used() -> float:
    """Return the CPU seconds of all processes that this one waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Profile all steps and write the table."""
    args = parse_args(argv)
    rows = []
    for ndim, shape in run.SEGMENTED.items():
        folder, image = args.work / f"profiles-{ndim}", run.field(shape)
        run.chain(folder, ndim, image)  # numba compiles what is new
        runs = []
        for _ in range(args.repeats):
            options = run.commands(folder, ndim, image)
            runs.append({name: profile(name, folder, options[name]) for name in spent.PARTS})
        for name in spent.PARTS:
            best = min((one[name] for one in runs), key=lambda parts: sum(parts.values()))
            log.info("%dD, %s: %.2f CPU s", ndim, name, sum(best.values()))
            rows += [
                {
                    "image": f"{ndim}D, {' x '.join(map(str, shape))}",
                    "step": name,
                    "part": part,
                    "cpu_s": round(seconds, 3),
                    "share": round(seconds / sum(best.values()), 3),
                }
                for part, seconds in best.items()
            ]
    with cli.write_whole(args.output) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)


if __name__ == "__main__":
    cli.run(main)
