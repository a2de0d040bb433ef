"""The jobs of a small run, as the workflow would start them, each in a forked process."""

import atexit
import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "workflow/scripts"
ORDER = ["tile", "infer", "cluster", "number", "paint", "stitch", "measure", "report", "summarize"]
OUTPUTS = {
    "tile": ("--output", "--tiles", "--record"),
    "infer": ("--output", "--record"),
    "cluster": ("--output", "--table", "--sightings", "--contacts", "--record"),
    "number": ("--output", "--record"),
    "paint": ("--output", "--counts", "--record"),
    "stitch": ("--output", "--identities", "--seams", "--record"),
    "measure": ("--output-csv", "--output-parquet", "--metrics", "--provenance"),
    "report": ("--output", "--complete"),
    "summarize": ("--output-csv", "--output-html"),
}
VOLATILE = {"seconds", "cpu_seconds", "network_seconds", "started", "peak_memory_mb", "mpx_per_s"}
VOLATILE |= {"network_cpu_seconds", "block_seconds", "clustering_seconds"}
VOLATILE |= {"host", "folder", "checksum", "outputs"}
"""Keys of JSON files that differ from run to run: times, places, and checksums of what has them."""


@dataclass(frozen=True)
class Job:
    """One call of a step, relative to the run folder."""

    step: str
    options: tuple[str, ...]

    @property
    def outputs(self) -> list[str]:
        """What it writes."""
        return [path for name in OUTPUTS[self.step] for path in self.values(name)]

    @property
    def inputs(self) -> list[str]:
        """What it reads, but for folders that it looks into."""
        names = "image store tiles model outputs labels tables sightings contacts numbers painted"
        names += " counts identities seams records objects metrics provenance table"
        if self.step == "summarize":
            results = self.values("--results")[0]
            return [f"{results}/a/metrics.json"]
        mine = set(OUTPUTS[self.step])
        options = [f"--{name}" for name in names.split() if f"--{name}" not in mine]
        return [path for option in options for path in self.values(option)]

    def values(self, option: str) -> list[str]:
        """Return the words after an option, or after its equals sign."""
        found, words = [], iter(self.options)
        taking = False
        for word in words:
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                taking = name == option
                if taking and equals:
                    found.append(value)
            elif taking:
                found.append(word)
        return found


def planned(folder: Path) -> list[Job]:
    """Return all jobs of a run in an order in which they can be done."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--cores", "1", "--dry-run", "--printshellcmds", "--forceall"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {folder}: no plan of its jobs: {done.stderr[-2000:]}")
    found = []
    for line in (done.stdout + done.stderr).splitlines():
        call = re.search(r"python (\S*?/scripts/(\w+)\.py .*) 2> ", line)
        if call and call[2] in ORDER:
            found.append(Job(call[2], tuple(shlex.split(call[1])[1:])))
    return sorted(dict.fromkeys(found), key=lambda job: (ORDER.index(job.step), job.options))


def load_steps() -> None:
    """Import what the steps need, so that a fork of this process starts at once."""
    sys.path.insert(0, str(SCRIPTS))
    for name in (*ORDER, "torch", "iaunet.predict", "iaunet.checkpoint", "iaunet.verify"):
        importlib.import_module(name)


def drop_capabilities() -> None:
    """Let the rights of files hold for root, too, in this process."""
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def start(job: Job, folder: Path, log: Path, plain: bool = False) -> int:
    """Fork a process that does a job, as no superuser when `plain`; return its number.

    Its stderr goes to the log.
    """
    pid = os.fork()
    if pid:
        return pid
    atexit._clear()  # what is to be done at the end of the process that forks
    status = 3
    try:
        with log.open("w") as stderr:
            os.dup2(stderr.fileno(), 2)
        os.chdir(folder)
        if plain:
            drop_capabilities()
        from iaunet import cli

        main = importlib.import_module(job.step).main
        with contextlib.suppress(SystemExit):
            status = 0
            try:
                cli.run(lambda: main(list(job.options)))
            except SystemExit as error:
                status = error.code or 0
                raise
    except BaseException:
        status = 3
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int) -> int:
    """Return the exit status of a process, negative when a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(job: Job, folder: Path, log: Path, plain: bool = False) -> int:
    """Do a job to its end; return its exit status."""
    return wait(start(job, folder, log, plain))


def kill(job: Job, folder: Path, log: Path, after_s: float) -> bool:
    """Start a job and kill it with SIGKILL after a time; False when it ended before."""
    pid = start(job, folder, log)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    return wait(pid) == -signal.SIGKILL


def checksums(folder: Path, paths: list[str]) -> dict[str, str]:
    """Return the checksum of every file of some outputs; times in JSON do not count."""
    found = {}
    for name in paths:
        top = folder / name
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in files:
            if path.is_file():
                key = str(path.relative_to(folder))
                found[key] = hashlib.sha256(content(path)).hexdigest()
    return found


def content(path: Path) -> bytes:
    """Return what a file says, without the times in JSON files of the steps."""
    text = path.read_bytes()
    timed = path.name in ("metrics.json", "provenance.json") or path.parent.name == "records"
    if not timed:
        return text
    try:
        return json.dumps(without_times(json.loads(text))).encode()
    except ValueError:
        return text


def without_times(value: object) -> object:
    """Return a JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in VOLATILE}
    return [without_times(item) for item in value] if isinstance(value, list) else value
