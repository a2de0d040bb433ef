"""A small part of benchmarks/faults: every step is killed once and gets one damaged byte."""

import csv
import subprocess
import sys

from runs import REPOSITORY


def test_every_step_survives_a_kill_and_tells_of_a_damaged_byte(tmp_path):
    command = [sys.executable, REPOSITORY / "benchmarks/faults/run.py", "--seed=5"]
    options = ["--kills=1", "--damages=1", "--cases", "2d", "--kinds", "kill", "flip"]
    done = subprocess.run(
        [*command, *options, "--output", tmp_path / "faults.csv"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "faults.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    killed = [row["step"] for row in rows if row["kind"] == "kill"]
    steps = "tile infer cluster number paint stitch measure report summarize"
    assert killed == steps.split()
    assert all(row["survived"] == row["count"] != "0" for row in rows)
