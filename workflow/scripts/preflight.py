"""Check, before the first job is submitted, that SLURM can run the jobs of a run at all.

A job that asks for more than any node has waits for ever, without a word; job arrays and groups
of the executor lose work. What is asked stands in JSON; what there is says `sinfo`, and where
that is absent or silent nothing is checked against it. Errors exit with status 1, what may go
wrong is a warning; each is one line on stderr.

Example
-------
    python preflight.py --asked asked.json

    {"jobs": [{"rule": "infer", "threads": 4, "mem_mb": 13500, "runtime": 240, "attempt": 1,
     "partition": "main", "gpus": 0}], "arrays": "", "groups": [], "status_command": "squeue",
     "no_requeue": true}
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iaunet import cli
from iaunet.errors import InputError, one_line

SECONDS = 20
"""How long sinfo may take to answer."""
FORMAT = "%R|%c|%m|%l|%a|%G|%M|%N"
LOCAL = [
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "tmpfs",
    "ramfs",
    "overlay",
    "f2fs",
    "reiserfs",
]
"""File systems that other nodes see only where somebody exports them."""


@dataclass(frozen=True)
class Node:
    """A node as one partition offers it; minutes: None is without limit."""

    partition: str
    cpus: int
    memory_mb: int
    minutes: float | None
    up: bool
    gpus: bool
    preempts: bool
    name: str


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--asked", type=Path, required=True, help="JSON; - is standard input")
    return parser.parse_args(argv)


def nodes() -> list[Node]:
    """Return what sinfo knows; nothing where it is absent, fails or does not answer."""
    command = ["sinfo", "--Node", "--exact", "--noheader", "--all", f"--format={FORMAT}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = (line.strip().split("|") for line in done.stdout.splitlines())
    return [node(words) for words in found if len(words) == FORMAT.count("|") + 1]


def node(words: Sequence[str]) -> Node:
    """Return one line of sinfo."""
    partition, cpus, memory, limit, up, gres, preempt, name = words
    return Node(
        partition=partition,
        cpus=number(cpus),
        memory_mb=number(memory),
        minutes=minutes(limit),
        up=up.startswith("up"),
        gpus="gpu" in gres,
        preempts=preempt.lower() not in ("off", "", "n/a"),
        name=name,
    )


def number(text: str) -> int:
    """Return the number that a text starts with.

    Examples
    --------
    >>> number("128"), number("16+"), number("")
    (128, 16, 0)
    """
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def minutes(text: str) -> float | None:
    """Return a time limit of SLURM in minutes; None: there is none.

    Examples
    --------
    >>> minutes("1-00:30:00"), minutes("30:00"), minutes("infinite")
    (1470.0, 30.0, None)
    """
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, mins, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + mins + seconds / 60


def setting_problems(asked: Mapping) -> Iterator[str]:
    """Yield the settings under which the executor is known to lose or to mix up work."""
    if asked["arrays"]:
        yield (
            f"slurm-array-jobs is '{asked['arrays']}'; job arrays of the executor end a run while "
            "tasks still write, and run one task for all above 100; remove the setting"
        )
    if asked["groups"]:
        yield (
            f"groups: {', '.join(asked['groups'])}; members of a group run one after the other and "
            "their threads are added up, which no node may have; remove the setting, a job of this "
            "workflow is a batch of tiles already"
        )


def setting_warnings(asked: Mapping, there: Sequence[Node]) -> Iterator[str]:
    """Yield the settings that may hang."""
    if asked["status_command"] != "squeue":
        yield (
            f"slurm-status-command is '{asked['status_command']}'; with it a run waits for ever "
            "for a job that somebody cancelled, or where there is no accounting; set squeue"
        )
    used = {job["partition"] for job in asked["jobs"]}
    preempts = sorted({one.partition for one in there if one.preempts} & used)
    if asked["no_requeue"] and preempts:
        yield (
            f"partition {', '.join(preempts)} preempts jobs and slurm-no-requeue is set: a "
            "preempted job is waited for for ever; remove slurm-no-requeue"
        )


def job_problems(job: Mapping, there: Sequence[Node]) -> Iterator[str]:
    """Yield why no node will ever take a job."""
    where = f"{job['rule']}, attempt {job['attempt']}"
    partition = job["partition"]
    some = [one for one in there if one.partition == partition] if partition else list(there)
    if not some:
        known = ", ".join(sorted({one.partition for one in there}))
        yield (
            f"{where}: no partition '{partition}'; there are {known}; set slurm_partition under "
            "default-resources of the profile"
        )
        return
    name = f"partition {partition}" if partition else "all partitions"
    for key, unit, most in (
        ("threads", "CPUs", max(one.cpus for one in some)),
        ("mem_mb", "MB of memory", max(one.memory_mb for one in some)),
    ):
        if job[key] > most:
            hint = "set-threads" if key == "threads" else "set-resources (or set-threads)"
            yield (
                f"{where}: asks for {job[key]} {unit}, the largest node of {name} has {most}; it "
                f"would wait for ever: lower it with {hint} in the profile, or take another "
                "partition"
            )
            return
    if not any(one.cpus >= job["threads"] and one.memory_mb >= job["mem_mb"] for one in some):
        yield (
            f"{where}: no node of {name} has {job['threads']} CPUs and {job['mem_mb']} MB of "
            "memory at once; it would wait for ever: lower one of them in the profile"
        )
    if job["gpus"] and not any(one.gpus for one in some):
        yield (
            f"{where}: asks for a GPU, no node of {name} has one; remove gres from the profile or "
            "take another partition"
        )
    limits = [one.minutes for one in some]
    if None not in limits and job["runtime"] > max(limits):
        yield (
            f"{where}: asks for {job['runtime']} minutes, the limit of {name} is "
            f"{max(limits):g}; it would wait for ever: lower runtime with set-resources in the "
            "profile, or take another partition"
        )


def down_warnings(asked: Mapping, there: Sequence[Node]) -> Iterator[str]:
    """Yield the partitions that take no jobs now."""
    for name in sorted({job["partition"] for job in asked["jobs"]}):
        some = [one for one in there if one.partition == name]
        if some and not any(one.up for one in some):
            yield f"partition {name} is down; jobs wait until it is up again"


def folder_warnings(folder: Path, there: Sequence[Node], mounts: str) -> Iterator[str]:
    """Yield that the run folder is on a disk of this machine alone, as far as that can be told."""
    others = {one.name for one in there} - {platform.node(), platform.node().split(".")[0]}
    kind = file_system(folder, mounts)
    if others and kind in LOCAL:
        yield (
            f"{folder} is on a local file system ({kind}); unless it is exported to the nodes, "
            "every job fails; put run folder, repository and environment where all nodes see them"
        )


def file_system(folder: Path, mounts: str) -> str:
    """Return the type of the file system of a folder, from the lines of /proc/self/mounts."""
    path, found = str(folder.resolve()), ("", "")
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]


def checked(asked: Mapping, there: Sequence[Node], mounts: str) -> tuple[list[str], list[str]]:
    """Return errors and warnings; a job that only a later attempt makes too large is a warning."""
    errors = list(setting_problems(asked))
    warnings = list(setting_warnings(asked, there))
    for job in asked["jobs"] if there else ():
        (errors if job["attempt"] == 1 else warnings).extend(job_problems(job, there))
    warnings += [*down_warnings(asked, there), *folder_warnings(Path.cwd(), there, mounts)]
    return errors, warnings


def read_asked(path: Path) -> dict:
    """Return what is asked."""
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        jobs = [{**job, "threads": int(job["threads"])} for job in found["jobs"]]
        keys = {"rule", "mem_mb", "runtime", "attempt", "partition", "gpus"}
        complete = all(keys <= set(job) for job in jobs)
        complete &= {"arrays", "groups", "status_command", "no_requeue"} <= set(found)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: not what `preflight.py --help` shows ({error!r})") from None
    if not complete:
        raise InputError(f"{path}: lacks keys; needs what `preflight.py --help` shows")
    return {**found, "jobs": jobs}


def say(word: str, texts: Iterable[str]) -> None:
    """Write lines to stderr, each once."""
    for text in dict.fromkeys(texts):
        sys.stderr.write(f"{word}: {one_line(text)}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Write errors and warnings."""
    args = parse_args(argv)
    recorder = cli.Recorder("preflight", args)
    asked = read_asked(args.asked)
    mounts = Path("/proc/self/mounts")
    text = mounts.read_text(encoding="utf-8") if os.access(mounts, os.R_OK) else ""
    errors, warnings = checked(asked, nodes(), text)
    say("warning", warnings)
    say("error", errors)
    recorder.write(n_errors=len(errors), n_warnings=len(warnings))
    if errors:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
