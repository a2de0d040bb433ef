"""What SLURM would wait for for ever is told before anything is submitted."""

import json
import os
import re
import subprocess
import sys

import pytest

import preflight
from runs import REPOSITORY, write_image, write_table

LINES = """main|16|64000|1-00:00:00|up|(null)|OFF|node1
main|32|32000|1-00:00:00|up|(null)|OFF|node2
gpu|8|120000|infinite|up|gpu:a100:2(S:0)|REQUEUE|node3
old|8|16000|2:00:00|down|(null)|OFF|node4
"""
JOB = {
    "rule": "infer", "threads": 4, "mem_mb": 13500, "runtime": 240, "attempt": 1,
    "partition": "main", "gpus": 0,
}  # fmt: skip


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """Return a function that puts a program of that name first on the path."""

    def put(body):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "sinfo"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.fixture
def told(tmp_path, capsys):
    """Return a function: exit status, errors and warnings for one job and settings."""

    def run(job=(), **settings):
        asked = {"arrays": "", "groups": [], "status_command": "squeue", "no_requeue": True}
        asked |= {"jobs": [JOB | dict(job)], **settings}
        (tmp_path / "asked.json").write_text(json.dumps(asked))
        status = 0
        try:
            preflight.main(["--asked", str(tmp_path / "asked.json")])
        except SystemExit as stop:
            status = stop.code
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith(("error: ", "warning: ")) for line in lines)
        about_disks = "is on a local file system"
        return status, [line for line in lines if about_disks not in line]

    return run


def test_jobs_that_fit_a_node_pass_in_silence(sinfo, told):
    sinfo(f"cat <<'X'\n{LINES}X")
    assert told() == (0, [])
    assert told({"threads": 32, "mem_mb": 32000, "runtime": 1440}) == (0, [])


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"threads": 33}, "asks for 33 CPUs, the largest node of partition main has 32"),
        ({"mem_mb": 64001}, "asks for 64001 MB of memory, the largest .* has 64000"),
        ({"threads": 32, "mem_mb": 40000}, "no node of partition main has 32 CPUs and 40000 MB"),
        ({"runtime": 1441}, "asks for 1441 minutes, the limit of partition main is 1440"),
        ({"partition": "mian"}, "no partition 'mian'; there are gpu, main, old"),
        ({"gpus": 1}, "asks for a GPU, no node of partition main has one"),
    ],
)
def test_what_no_node_has_is_refused(sinfo, told, job, message):
    sinfo(f"cat <<'X'\n{LINES}X")
    status, (line,) = told(job)
    assert status == 1
    assert line.startswith("error: infer, attempt 1: ")
    assert re.search(message, line), line
    assert told({**job, "attempt": 3})[0] == 0, "a later attempt is a warning"
    assert told({**job, "attempt": 3})[1][0].startswith("warning: infer, attempt 3: ")


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        ({"arrays": "all"}, 1, "error: slurm-array-jobs is 'all'"),
        ({"groups": ["infer"]}, 1, "error: groups: infer"),
        ({"status_command": "sacct"}, 0, "warning: slurm-status-command is 'sacct'"),
    ],
)
def test_settings_that_lose_work_are_refused_without_sinfo_too(
    sinfo, told, settings, status, message
):
    sinfo("echo 'sinfo: error: no controller' >&2; exit 1")
    found, (line,) = told(**settings)
    assert found == status
    assert line.startswith(message)


def test_partitions_that_preempt_or_are_down_are_told(sinfo, told):
    sinfo(f"cat <<'X'\n{LINES}X")
    status, (line,) = told({"partition": "gpu"})
    assert (status, "remove slurm-no-requeue" in line) == (0, True)
    assert told({"partition": "gpu"}, no_requeue=False) == (0, [])
    status, (line,) = told({"partition": "old", "runtime": 60})
    assert (status, "partition old is down" in line) == (0, True)


def test_an_absent_or_silent_sinfo_is_no_error(sinfo, told, monkeypatch):
    monkeypatch.setattr(preflight, "SECONDS", 0.5)
    sinfo("sleep 5")
    assert told({"threads": 10_000}) == (0, [])
    monkeypatch.setenv("PATH", "")
    assert told({"threads": 10_000}) == (0, [])


def test_a_run_folder_on_a_disk_of_one_machine_is_told(tmp_path):
    there = [preflight.node(["main", "1", "1", "infinite", "up", "", "OFF", "elsewhere"])]
    mounts = f"a / ext4 rw 0 0\nserver:/x {tmp_path} {{}} rw 0 0\n"
    assert "local file system (xfs)" in next(
        preflight.folder_warnings(tmp_path / "run", there, mounts.format("xfs"))
    )
    assert not list(preflight.folder_warnings(tmp_path / "run", there, mounts.format("nfs4")))
    assert not list(preflight.folder_warnings(tmp_path / "run", [], mounts.format("xfs")))


def test_what_is_not_asked_rightly_is_told(tmp_path):
    for text in ("", "[]", '{"jobs": [{}]}', '{"jobs": []}', "[" * 100_000):
        (tmp_path / "asked.json").write_text(text)
        with pytest.raises(preflight.InputError, match=r"preflight\.py --help"):
            preflight.main(["--asked", str(tmp_path / "asked.json")])


def test_the_workflow_asks_before_it_submits(tmp_path, sinfo):
    sinfo("echo 'main|2|64000|1-00:00:00|up|(null)|OFF|node1'")
    write_image(tmp_path / "a.tif")
    write_table(tmp_path / "images.csv", [{"image": "a", "path": "a.tif"}])
    (tmp_path / "config.yaml").write_text("images: images.csv\n")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    command += ["--directory", str(tmp_path)]
    command += ["--profile", str(REPOSITORY / "workflow/profiles/slurm")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "error: infer, attempt 1: asks for 4 CPUs, the largest node" in done.stderr
    assert not (tmp_path / "logs").exists(), "a job was submitted"
