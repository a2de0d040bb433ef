r"""Hostile files against every way in: 10,000 cases and what they came to.

Cases are drawn by Hypothesis; each is driven in a process of its own (see `law.py`). A defect is
made as small as can be, kept, and not looked for again. Exit status 1: there were defects.

Example
-------
    python benchmarks/fuzz/fuzz.py --cases 10000 --seed 1 --work /tmp/fuzz --output fuzz.md
"""

import argparse
import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.dont_write_bytecode = True  # a case that imports something must write nothing
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("workflow/scripts", "tests")]

import drives
import hypothesis
import law
import originals
from hypothesis import HealthCheck, Phase
from law import Limits, Verdict

from iaunet import cli
from iaunet.errors import InputError, OptionError

log = logging.getLogger("fuzz")


COSTLY = ("timeout", "memory")
"""What is kept as it was met: to make it smaller would take as long again, many times."""
SHRINK_SECONDS = 60


class Defect(Exception):  # noqa: N818
    """A case that breaks the law; raised so that Hypothesis makes it smaller."""


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
        self.defects: dict[str, Verdict] = {}
        self.peak_mb = self.longest = 0.0
        self.n_cases = 0

    def run(self, cases: int, seed: int) -> None:
        """Drive so many cases."""
        (self.folder / law.BESIDE).mkdir(parents=True, exist_ok=True)
        (self.folder / law.BESIDE / "secret.tif").write_bytes(originals.tiffs()["stack"])
        (self.folder / "model.safetensors").write_bytes(originals.model())
        worker = law.Worker(self.target.drive, self.folder, self.limits)
        try:
            while self.n_cases < cases:
                wanted = self._wanted(cases - self.n_cases, seed + self.n_cases, worker)
                try:
                    wanted()
                except Defect as found:
                    self._note(*found.args)
        finally:
            worker.stop()

    def _wanted(self, cases: int, seed: int, worker: law.Worker):
        """Return a function that drives cases until a defect is met that is not yet known."""
        hunted: list[str] = []
        until: list[float] = []

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @hypothesis.given(files=self.target.cases())
        def drive(files: originals.Files) -> None:
            verdict = worker.judge(files)
            if not hunted:
                self._count(verdict)
            place = f"{verdict.kind}: {verdict.place}"
            if verdict.kind not in law.DEFECTS or place in self.defects:
                return
            if verdict.kind in COSTLY:
                self._found(files, place, verdict)
            elif not hunted or (place == hunted[0] and time.monotonic() < until[0]):
                hunted[:] = hunted or [place]
                until[:] = until or [time.monotonic() + SHRINK_SECONDS]
                self._keep(files, place, verdict)
                raise Defect(place, verdict)

        return drive

    def _found(self, files: originals.Files, place: str, verdict: Verdict) -> None:
        """Keep a defect as it is."""
        self._keep(files, place, verdict)
        self._note(place, verdict)

    def _note(self, place: str, verdict: Verdict) -> None:
        self.defects[place] = verdict
        log.warning("%s: %s\n%s", self.name, place, verdict.text)

    def _count(self, verdict: Verdict) -> None:
        self.n_cases += 1
        self.kinds[verdict.kind] += 1
        self.peak_mb = max(self.peak_mb, verdict.peak_mb)
        self.longest = max(self.longest, verdict.seconds)
        if self.n_cases % 500 == 0:
            log.info("%s: %d cases: %s", self.name, self.n_cases, dict(self.kinds))

    def _keep(self, files: originals.Files, place: str, verdict: Verdict) -> None:
        """Write the smallest case of a defect that is known."""
        number = len(self.defects)
        kept = self.folder / f"defect-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        law.write(files, kept)
        (kept / "verdict.txt").write_text(f"{place}\n{verdict.text}\n", "utf-8", "replace")


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
