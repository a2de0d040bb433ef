"""The profiles of benchmarks/speed name functions that there are, and count no second twice."""

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tifffile

import warm
from nets import save_model
from pages import REPOSITORY

SPEC = importlib.util.spec_from_file_location("spent", REPOSITORY / "benchmarks/speed/spent.py")
spent = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(spent)


def burn(seconds):
    """Keep the processor busy for so many seconds of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("step", spent.PARTS)
def test_the_functions_of_all_parts_exist(step):
    importlib.import_module(step)
    for names in spent.PARTS[step].values():
        for name in names:
            module, _, path = name.partition(":")
            found = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
            assert callable(found)


def test_a_part_does_not_count_the_parts_within_it():
    found = spent.Spent()
    inner = found.within("inner", lambda: burn(0.05))
    found.within("outer", lambda: (burn(0.02), inner(), inner()))()
    assert found.seconds["inner"] == pytest.approx(0.1, abs=0.01)
    assert found.seconds["outer"] == pytest.approx(0.02, abs=0.01)


def test_a_part_does_not_count_what_other_threads_do():
    found = spent.Spent()
    threads = [threading.Thread(target=found.within(name, lambda: burn(0.1))) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.seconds["a"] == pytest.approx(0.1, abs=0.02)
    assert found.seconds["b"] == pytest.approx(0.1, abs=0.02)


def test_what_a_helper_does_counts_for_the_part_that_waits():
    found = spent.Spent()
    asked, done = threading.Event(), threading.Event()

    def help_once():
        asked.wait()
        burn(0.1)
        done.set()
        ended.wait()

    ended = threading.Event()
    helper = threading.Thread(target=help_once, name="zarr_of_test")
    helper.start()
    wait = found.helped(lambda: (asked.set(), done.wait()))
    inner = found.within("inner", wait)
    found.within("outer", lambda: (burn(0.02), inner()))()
    ended.set()
    helper.join()
    assert found.seconds["inner"] == pytest.approx(0.1, abs=0.02)
    assert found.seconds["outer"] == pytest.approx(0.02, abs=0.01)


def test_a_profile_is_written_when_the_step_has_done_its_work(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((64, 64), np.uint8))
    save_model(tmp_path / "m.safetensors", 2)
    words = [*warm.REHEARSAL["tile"].split(), "--model", "m.safetensors", "--record", "r.json"]
    command = [sys.executable, spent.__file__, "spent.json", "tile", *words]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "tiles.json").exists()
    facts = json.loads((tmp_path / "spent.json").read_text())
    assert set(spent.PARTS["tile"]) <= set(facts["parts"])
    assert facts["until_end"] >= sum(facts["parts"].values()) > 0
