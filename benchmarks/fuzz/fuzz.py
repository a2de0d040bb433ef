r"""Hostile files against every way in: 10,000 cases and what they came to.

Cases are drawn by Hypothesis; each is driven in a process of its own (see `law.py`). Of each
defect the smallest case that was met is kept. Exit status 1: there were defects.

Example
-------
    python benchmarks/fuzz/fuzz.py --cases 10000 --seed 1 --work WORK --output fuzz.md
"""

import argparse
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

import hypothesis
from hypothesis import HealthCheck, Phase

import drives
import law
import originals
from iaunet import cli
from iaunet.errors import InputError, OptionError
from law import Limits, Verdict

log = logging.getLogger("fuzz")

sys.dont_write_bytecode = True  # a case that imports something must write nothing


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--cases", type=int, required=True, help="number of cases, all targets")
    parser.add_argument("--seed", type=int, required=True, help="of the random numbers")
    parser.add_argument("--work", type=Path, required=True, help="folder for cases and defects")
    parser.add_argument("--output", type=Path, help="table to write, Markdown")
    parser.add_argument("--data", type=Path, help="folder of real files, altered as well")
    parser.add_argument("--targets", nargs="+", default=list(drives.TARGETS), help="some only")
    parser.add_argument("--seconds", type=float, default=20, help="limit of a case")
    parser.add_argument("--memory-mb", type=float, default=2500, help="limit of a case")
    args = parser.parse_args(argv)
    unknown = set(args.targets) - set(drives.TARGETS)
    if unknown or args.cases < 1:
        raise OptionError(f"--targets: needs some of {', '.join(drives.TARGETS)}; --cases above 0")
    return args


class Hunt:
    """The cases of one target, what they came to, and the defects by their place."""

    def __init__(self, name: str, work: Path, limits: Limits) -> None:
        self.name = name
        self.target = drives.TARGETS[name]
        self.folder = work / name.replace(" ", "-").replace(",", "")
        self.limits = limits
        self.kinds: Counter[str] = Counter()
        self.defects: dict[str, tuple[int, int]] = {}  # number, bytes of the smallest case
        self.peak_mb = self.longest = 0.0
        self.n_cases = 0

    def run(self, cases: int, seed: int) -> None:
        """Drive so many cases."""
        (self.folder / law.BESIDE).mkdir(parents=True, exist_ok=True)
        (self.folder / law.BESIDE / "secret.tif").write_bytes(originals.tiffs()["stack"])
        (self.folder / "model.safetensors").write_bytes(originals.model())
        worker = law.Worker(self.target.drive, self.folder, self.limits, self.target.harmless())

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(files=self.target.cases())
        def drive(files: originals.Files) -> None:
            verdict = worker.judge(files)
            self._count(verdict)
            if verdict.kind in law.DEFECTS:
                self._keep(files, verdict)

        try:
            drive()
        finally:
            worker.stop()

    def _count(self, verdict: Verdict) -> None:
        self.n_cases += 1
        self.kinds[verdict.kind] += 1
        self.peak_mb = max(self.peak_mb, verdict.peak_mb)
        self.longest = max(self.longest, verdict.seconds)
        if self.n_cases % 500 == 0:
            log.info("%s: %d cases: %s", self.name, self.n_cases, dict(self.kinds))

    def _keep(self, files: originals.Files, verdict: Verdict) -> None:
        """Keep the smallest case that was met of a defect."""
        place = f"{verdict.kind}: {verdict.place}"
        size = sum(map(len, files.values()))
        number, smallest = self.defects.setdefault(place, (len(self.defects), size + 1))
        if size >= smallest:
            return
        self.defects[place] = (number, size)
        kept = self.folder / f"defect-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        law.write(files, kept)
        text = f"{place}\n{verdict.text}\n"
        (kept / "verdict.txt").write_text(text, "utf-8", "replace")
        log.warning("%s: %s", self.name, text)


def table(hunts: Sequence[Hunt]) -> str:
    """Return what all cases came to, in Markdown."""
    names = ("accepted", "refused", *law.DEFECTS)
    head = ["target", "cases", *names, "longest, s", "largest, MB"]
    rows = [
        [
            hunt.name,
            hunt.n_cases,
            *(hunt.kinds[name] for name in names),
            f"{hunt.longest:.1f}",
            f"{hunt.peak_mb:,.0f}",
        ]
        for hunt in hunts
    ]
    total = ["all", *(sum(row[k] for row in rows) for k in range(1, 2 + len(names))), "", ""]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows, total]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Drive all targets; write the table."""
    args = parse_args(argv)
    began = time.monotonic()
    if args.data is not None:
        add_real_files(args.data)
    drives.warm()
    limits = Limits(args.seconds, args.memory_mb)
    shares = sum(drives.TARGETS[name].share for name in args.targets)
    hunts = []
    for name in args.targets:
        hunts.append(Hunt(name, args.work, limits))
        hunts[-1].run(-(-args.cases * drives.TARGETS[name].share // shares), args.seed)
        log.info("%s: %s", name, dict(hunts[-1].kinds))
    text = table(hunts)
    log.info("%.0f s\n%s", time.monotonic() - began, text)
    if args.output is not None:
        args.output.write_text(text, encoding="utf-8")
    n_defects = sum(len(hunt.defects) for hunt in hunts)
    if n_defects:
        raise InputError(f"{n_defects} defects; the smallest cases lie in {args.work}")


def add_real_files(folder: Path) -> None:
    """Take the small TIFFs of a folder among the originals."""
    for path in sorted(folder.rglob("*.tif")):
        if path.is_file() and path.stat().st_size < 4 << 20:
            originals.tiffs()[path.name] = path.read_bytes()


if __name__ == "__main__":
    cli.run(main)
