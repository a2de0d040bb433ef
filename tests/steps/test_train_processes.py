"""Training in real processes: killed and started again, and two of them together."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from iaunet import checkpoint
from runs import REPOSITORY
from small_training import draw_table

SCRIPT = REPOSITORY / "tests/small_training.py"
ALONE = [sys.executable, SCRIPT]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, SCRIPT]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return draw_table(folder)


def started(launcher, table, folder, *more, steps):
    words = [*launcher, "--table", table, "--name", "m", "--output", folder / "m.safetensors"]
    words += ["--work", folder / "work", "--max-minutes", 0, "--max-steps", steps]
    words += ["--threads", 1, "--seed", 1, "--device", "cpu", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [str(word) for word in words], stderr=subprocess.PIPE, text=True, env=environment
    )


def finished(*arguments, **options):
    process = started(*arguments, **options)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return errors


def kill_when(process, is_time):
    """Kill a process at once when a condition holds; return whether it was still running."""
    while not is_time() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_a_killed_training_ends_with_the_bytes_of_an_unbroken_one(table, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finished(ALONE, table, whole, steps=12)
    state = broken / "work" / "checkpoint.safetensors"
    kills, last = 0, None
    for _ in range(2):  # killed after two different checkpoints

        def is_newer(last=last):
            return state.exists() and state.stat().st_mtime_ns != last

        kills += kill_when(started(ALONE, table, broken, steps=12), is_newer)
        last = state.stat().st_mtime_ns
    assert kills == 2
    assert not (broken / "m.safetensors").exists()
    assert "going on from step" in finished(ALONE, table, broken, steps=12)
    assert (broken / "m.safetensors").read_bytes() == (whole / "m.safetensors").read_bytes()


def test_two_processes_train_one_model_and_go_on_after_a_kill(table, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--pairs", 3, "--record", whole / "record.json"]
    log = finished(TWO, table, whole, *more, steps=6)  # compares the weights at checkpoints
    assert log.count("images to fit") == 1  # only the first process logs
    assert json.loads((whole / "record.json").read_text())["processes"] == 2
    meta = checkpoint.read_meta(whole / "m.safetensors")
    assert meta["training"]["processes"] == 2
    assert meta["training"]["crops_per_step"] == 6
    assert meta["training"]["command"].startswith("torchrun --nproc-per-node 2 train.py --table")
    state = broken / "work" / "checkpoint.safetensors"
    process = started(TWO, table, broken, "--pairs", 3, steps=6)
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()  # torchrun ends its processes
    process.communicate()
    assert not (broken / "m.safetensors").exists()
    finished(TWO, table, broken, "--pairs", 3, steps=6)
    assert (broken / "m.safetensors").read_bytes() == (whole / "m.safetensors").read_bytes()


def test_more_processes_than_pairs_are_refused_in_one_line(table, tmp_path):
    process = started(TWO, table, tmp_path, "--pairs", 1, steps=2)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "error: --pairs 1: needs at least one for each of 2 processes" in errors
