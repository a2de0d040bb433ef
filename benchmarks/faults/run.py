r"""Kill, starve and damage every step of the workflow, and see whether the result is the same.

A small part of a demo image is segmented by the steps themselves, called as the workflow calls
them. Then each job is disturbed again and again, in a process of its own:

- kill: SIGKILL at a random moment; what has a final name then must be whole;
- disk: the file system is full after a random part of the output (a tmpfs; needs root);
- permission: an input cannot be read;
- truncate, flip: a file of an input is cut, or one of its bytes is another.

Each must end with exit status 1 and one line that names what is wrong, or change nothing. Then the
cause is removed, and the same command must give the same bytes. At last (kind run) Snakemake and
all its processes are killed at random moments.

Example
-------
    python benchmarks/faults/run.py --seed 1 --kills 20 --output docs/faults.csv
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import jobs
import psutil

DEMO = jobs.REPOSITORY / "resources/demo"
MODELS = jobs.REPOSITORY / "resources/models"
CASES = {
    "2d": ("nuclei", "nuclei-2d", (slice(0, 200), slice(0, 220)), "[96, 96]"),
    "3d": ("volume", "nuclei-3d", (slice(0, 12), slice(0, 100), slice(0, 96)), "[12, 64, 64]"),
}
KINDS = ("kill", "disk", "permission", "truncate", "flip", "run")
COLUMNS = ("case", "kind", "step", "what", "count", "survived", "redone")


@dataclass
class Tally:
    """What became of the faults of one kind."""

    count: int = 0
    survived: int = 0
    redone: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, problem: str, redone: float = 0.0) -> None:
        """Count one fault; without a problem it was survived."""
        self.count += 1
        self.survived += not problem
        self.redone += redone
        if problem:
            self.failures.append(problem)


class Bench:
    """A run folder, a spare copy of it, and its jobs."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.spare, self.folder = folder / "spare", folder / "run"
        self.log, self.rng = folder / "log", rng
        self.jobs = jobs.planned(self.spare)
        self.seconds: dict[jobs.Job, float] = {}
        self.sums: dict[jobs.Job, dict[str, str]] = {}

    def undisturbed(self) -> None:
        """Do all jobs and keep what they leave."""
        for job in self.jobs:
            began = time.perf_counter()
            if jobs.run(job, self.spare, self.log):
                sys.exit(f"error: {job.step}, undisturbed: {self.log.read_text()[-2000:]}")
            self.seconds[job] = time.perf_counter() - began
            self.sums[job] = jobs.checksums(self.spare, job.outputs)
        shutil.copytree(self.spare, self.folder)

    def clear(self, job: jobs.Job) -> None:
        """Remove the outputs of a job."""
        for name in job.outputs:
            remove(self.folder / name)

    def restore(self, job: jobs.Job, names: list[str] | None = None) -> None:
        """Bring back the outputs of a job, or other files, as they were."""
        for name in job.outputs if names is None else names:
            remove(self.folder / name)
            source = self.spare / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, self.folder / name)

    def half_written(self, job: jobs.Job) -> str:
        """Return what of a job's outputs has its final name and is not whole; or nothing."""
        for name in job.outputs:
            found = jobs.checksums(self.folder, [name])
            wanted = {k: v for k, v in self.sums[job].items() if Path(k).is_relative_to(name)}
            if (self.folder / name).exists() and found != wanted:
                return f"{job.step}: {name} is not whole"
        return ""

    def again(self, job: jobs.Job) -> str:
        """Do a job to its end; return what is not as in the undisturbed run, or nothing."""
        status = jobs.run(job, self.folder, self.log)
        if status:
            return f"{job.step}, same command again: exit {status}: {self.last_line()}"
        found = jobs.checksums(self.folder, job.outputs)
        different = [name for name in self.sums[job] if found.get(name) != self.sums[job][name]]
        left = [str(path) for path in self.folder.rglob("*.partial")]
        return f"{job.step}, same command again: {different + left}" if different + left else ""

    def refused(self, job: jobs.Job, status: int, word: str) -> str:
        """Return why an end is no clear refusal that has a word in it; or nothing."""
        clear = status == 1 and self.last_line().startswith("error: ")
        if clear and word in self.last_line():
            return ""
        return f"{job.step}, {word}: exit {status}: {self.last_line()}"

    def last_line(self) -> str:
        """Return the last line of the log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_case(folder: Path, name: str) -> None:
    """Write the run folder of a case: a part of a demo image, in several tiles and batches."""
    import tifffile

    image, model, box, core = CASES[name]
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "a.tif", tifffile.imread(DEMO / f"{image}.tif")[box])
    shutil.copyfile(MODELS / f"{model}.safetensors", folder / "m.safetensors")
    (folder / "images.csv").write_text("image,path\na,a.tif\n")
    (folder / "config.yaml").write_text(
        "images: images.csv\nmodel: ./m.safetensors\ndiameter_px: native\nstitching: {jobs: 2}\n"
        f"tiling: {{core_px: {core}, tiles_per_batch: 3}}\n"
    )


def one_of_each(bench: Bench) -> list[jobs.Job]:
    """Return one job of every step, drawn anew."""
    steps = list(dict.fromkeys(job.step for job in bench.jobs))
    return [bench.rng.choice([j for j in bench.jobs if j.step == step]) for step in steps]


def kills(bench: Bench, count: int, tallies: dict) -> None:
    """Kill a job of every step so many times, and let it go on to its end."""
    for _ in range(count):
        for job in one_of_each(bench):
            bench.clear(job)
            longest = bench.seconds[job]
            for _ in range(20):
                moment = bench.rng.uniform(0, longest)
                if jobs.kill(job, bench.folder, bench.log, moment):
                    break
                bench.clear(job)  # it was faster than before
                longest = 0.7 * longest
            else:
                continue
            problem = bench.half_written(job) or bench.again(job)
            tally(tallies, "kill", job.step).add(problem, moment)
            bench.restore(job)


def full_disks(bench: Bench, count: int, tallies: dict) -> str:
    """Fill the file system during a job of every step; return why this cannot be done here."""
    plain = bench.folder
    used = sum(path.stat().st_size for path in plain.rglob("*") if path.is_file())
    mounted = plain.with_name("disk")
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={4 * used + (8 << 20)}", "tmpfs", str(mounted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"no mount ({error})"
    if done.returncode:
        return f"mounting a tmpfs is not permitted ({done.stderr.strip()})"
    try:
        bench.folder = mounted / "run"
        shutil.copytree(bench.spare, bench.folder)
        for _ in range(count):
            for job in one_of_each(bench):
                fill_disk(bench, job, mounted, tallies)
    finally:
        bench.folder = plain
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)
    return ""


def fill_disk(bench: Bench, job: jobs.Job, mounted: Path, tallies: dict) -> None:
    """Do a job with room for a random part of what it writes; make room, do it again.

    Where it finds room enough (linked files take none), it gets half of it.
    """
    files = [path for name in job.outputs for path in [bench.folder / name]]
    size = sum(p.stat().st_size for f in files for p in [f, *f.rglob("*")] if p.is_file())
    filler, status = mounted / "filler", 0
    room = bench.rng.randrange(max(1, size // 2))
    while status == 0:
        bench.clear(job)
        filler.unlink(missing_ok=True)
        free = os.statvfs(mounted)
        with filler.open("wb") as file:
            most = free.f_bavail * free.f_bsize
            os.posix_fallocate(file.fileno(), 0, most - room // 4096 * 4096)
        began = time.perf_counter()
        status = jobs.run(job, bench.folder, bench.log)
        spent = time.perf_counter() - began
        room //= 2
    problem = bench.half_written(job) or bench.refused(job, status, "No space left on device")
    filler.unlink()
    problem = problem or bench.again(job)
    tally(tallies, "disk", job.step).add(problem, spent)
    bench.restore(job)


def permissions(bench: Bench, tallies: dict) -> None:
    """Take away the right to read each input of a job of every step."""
    for job in one_of_each(bench):
        bench.clear(job)
        for name in dict.fromkeys(job.inputs):
            path = bench.folder / name
            mode = path.stat().st_mode
            path.chmod(0)
            status = jobs.run(job, bench.folder, bench.log, plain=True)
            problem = outcome(bench, job, status, name)
            path.chmod(mode)
            bench.clear(job)
            tally(tallies, "permission", job.step).add(problem)
        tally(tallies, "permission", job.step).add(bench.again(job))
        bench.restore(job)


def outcome(bench: Bench, job: jobs.Job, status: int, name: str) -> str:
    """Return why a job neither refused its input by name nor did without it; or nothing."""
    if status:
        return bench.half_written(job) or bench.refused(job, status, name)
    if job.step == "stitch" and name.endswith("image.zarr"):
        # The pixels are linked and not looked at; the step that does must tell.
        (job,) = (other for other in bench.jobs if other.step == "measure")
        name = next(path for path in job.inputs if path.endswith(".ome.zarr"))
        same = jobs.checksums(bench.folder, [name]) == jobs.checksums(bench.spare, [name])
        return "" if same else bench.refused(job, jobs.run(job, bench.folder, bench.log), name)
    if job.step == "summarize" and "failed" in (bench.folder / job.outputs[0]).read_text():
        return ""  # the run goes on without an image that cannot be read
    same = jobs.checksums(bench.folder, job.outputs) == bench.sums[job]
    return "" if same else f"{job.step}: {name}: not noticed"


def damages(bench: Bench, kind: str, count: int, tallies: dict) -> None:
    """Cut a file of every input of a job of every step, or change one of its bytes."""
    for job in one_of_each(bench):
        own = []
        if kind == "flip" and job.step == "tile":
            own = job.values("--image") + job.values("--model")  # nobody can tell
        bench.clear(job)
        for what, files in files_of(bench, [n for n in job.inputs if n not in own]).items():
            for _ in range(count):
                name, path = bench.rng.choice(files)
                content = path.read_bytes()
                if not content:
                    continue
                path.write_bytes(damaged(content, kind, bench.rng))
                status = jobs.run(job, bench.folder, bench.log)
                problem = outcome(bench, job, status, name)
                problem = problem and f"{problem} ({path.relative_to(bench.folder)})"
                path.write_bytes(content)
                bench.clear(job)
                tally(tallies, kind, job.step, what).add(problem)
        tally(tallies, kind, job.step, "afterwards").add(bench.again(job))
        bench.restore(job)


def files_of(bench: Bench, names: list[str]) -> dict[str, list[tuple[str, Path]]]:
    """Return the files of some inputs, each with the input's name, by what they are."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for name in dict.fromkeys(names):
        top = bench.folder / name
        if not top.is_dir():
            found.setdefault(f"{top.parent.name}/*{top.suffix}", []).append((name, top))
            continue
        for path in top.rglob("*"):
            if path.is_file() and not path.name.startswith(".snakemake"):
                part = "metadata" if path.name == "zarr.json" else "chunks"
                store = name if name.endswith(".ome.zarr") else f"{top.parent.name}/*.zarr"
                found.setdefault(f"{Path(store).name} {part}", []).append((name, path))
    return found


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """Return the first half of a content, or all of it with one bit of one byte changed."""
    if kind == "truncate":
        return content[: len(content) // 2]
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def killed_runs(name: str, folder: Path, count: int, rng: random.Random, tallies: dict) -> None:
    """Kill whole runs of Snakemake at random moments; the last one must end as an undisturbed."""
    whole, broken = folder / "whole", folder / "broken"
    for run in (whole, broken):
        write_case(run, name)
    began = time.perf_counter()
    log = snakemake(whole)
    longest = time.perf_counter() - began
    n_jobs, n_started = starts(log), 0
    finals = ["results/a/a.ome.zarr", "results/a/objects.csv", "results/a/objects.parquet"]
    finals += ["results/a/seams.csv", "results/a/metrics.json"]
    wanted = jobs.checksums(whole, finals)
    # The last run ends, so that each moment is drawn from what is left of the work.
    for k in range(count):
        text, ended = killed_run(broken, rng.uniform(0, 2 * longest / (k + 2)))
        n_started += starts(text)
        problem = ""
        for path in broken.glob("results/a/*"):
            part = str(path.relative_to(broken))
            if part in finals and jobs.checksums(broken, [part]) != {
                k: v for k, v in wanted.items() if Path(k).is_relative_to(part)
            }:
                problem = f"{path} is not whole"
        tally(tallies, "run", "snakemake").add(problem)
        if ended:
            shutil.rmtree(broken)
            write_case(broken, name)
            n_started = 0
    n_started += starts(snakemake(broken))
    if jobs.checksums(broken, finals) != wanted:
        tally(tallies, "run", "snakemake").add("the final files differ from those undisturbed")
    tally(tallies, "run", "snakemake").redone += max(0, n_started - n_jobs)


def starts(log: str) -> int:
    """Return how many jobs a run started."""
    return sum(line.startswith(("rule ", "localrule ")) for line in log.splitlines())


def snakemake_command() -> list[str]:
    """Return the command of a run."""
    return [
        *(sys.executable, "-m", "snakemake", "--cores", "1"),
        *("--snakefile", str(jobs.REPOSITORY / "Snakefile")),
    ]


def snakemake(folder: Path) -> str:
    """Run the workflow to its end; return what it says."""
    done = subprocess.run(
        snakemake_command(), cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: {folder}: {done.stderr[-3000:]}")
    return done.stderr


def killed_run(folder: Path, after_s: float) -> tuple[str, bool]:
    """Start the workflow, kill all its processes; return what it said, and whether it ended."""
    log = folder / "killed.log"
    with log.open("w") as stderr:
        run = psutil.Popen(
            snakemake_command(), cwd=folder, stdout=stderr, stderr=stderr, start_new_session=True
        )
        try:
            run.wait(after_s)
        except psutil.TimeoutExpired:
            found = [run, *run.children(recursive=True)]
            for process in found:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(found)
            return log.read_text(), False
    return log.read_text(), True


def tally(tallies: dict, kind: str, step: str, what: str = "") -> Tally:
    """Return the tally of a kind of disturbance of a step, made when it is the first."""
    return tallies.setdefault((kind, step, what), Tally())


def disturb(
    name: str, folder: Path, wanted: argparse.Namespace, rng: random.Random
) -> tuple[dict, dict[str, str]]:
    """Return the tallies of a case, and why kinds were left out."""
    tallies: dict = {}
    skipped = {}
    write_case(folder / "spare", name)
    bench = Bench(folder, rng)
    bench.undisturbed()
    if "kill" in wanted.kinds:
        kills(bench, wanted.kills, tallies)
    if "disk" in wanted.kinds:
        skipped["disk"] = full_disks(bench, wanted.damages, tallies)
    if "permission" in wanted.kinds:
        permissions(bench, tallies)
    for kind in ("truncate", "flip"):
        if kind in wanted.kinds:
            damages(bench, kind, wanted.damages, tallies)
    if "run" in wanted.kinds:
        killed_runs(name, folder, wanted.damages, rng, tallies)
    return tallies, {kind: reason for kind, reason in skipped.items() if reason}


def parse_args() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seed", type=int, required=True, help="of the random moments and places")
    add("--kills", type=int, required=True, help="of every step")
    add("--damages", type=int, default=3, help="of each other kind, step and input")
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--output", type=Path, required=True, help="CSV to write")
    add("--keep", action="store_true", help="keep the rows of other cases and kinds in the CSV")
    return parser.parse_args()


def kept(wanted: argparse.Namespace) -> list[tuple]:
    """Return the rows of the CSV whose cases or kinds are not done now."""
    with wanted.output.open(newline="", encoding="utf-8") as file:
        rows = [tuple(row[name] for name in COLUMNS) for row in csv.DictReader(file)]
    return [row for row in rows if row[0] not in wanted.cases or row[1] not in wanted.kinds]


def main() -> None:
    """Disturb, print and write the table."""
    args = parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs.load_steps()
    rows, failures = kept(args) if args.keep else [], []
    for name in args.cases:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            tallies, skipped = disturb(name, Path(folder), args, random.Random(args.seed))
        for kind, reason in skipped.items():
            rows.append((name, kind, "", f"left out: {reason}", 0, 0, ""))
        for (kind, step, what), found in tallies.items():
            if kind == "run":
                redone = f"{found.redone:.0f} jobs in all"
            else:
                redone = f"{found.redone / found.count:.2f} s" if found.redone else ""
            rows.append((name, kind, step, what, found.count, found.survived, redone))
            failures += [f"{name}, {kind}, {step}, {what}: {text}" for text in found.failures]
    rows.sort(key=lambda row: (list(CASES).index(row[0]), KINDS.index(row[1])))
    with args.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    for row in (COLUMNS, *rows):
        sys.stdout.write("  ".join(str(value).ljust(12) for value in row).rstrip() + "\n")
    for text, times in Counter(failures).items():
        sys.stdout.write(f"not survived ({times}): {text}\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
