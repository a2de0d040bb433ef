"""Hostile files are accepted or refused in one line: a sample of `benchmarks/fuzz`, and its law."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import drives
import fuzz
import law
from iaunet.errors import InputError

LIMITS = law.Limits(seconds=20, memory_mb=2500)


@pytest.mark.parametrize("name", sorted(drives.TARGETS))
def test_hostile_files_are_accepted_or_refused_in_one_line(tmp_path, name):
    hunt = fuzz.Hunt(name, tmp_path, LIMITS)
    hunt.run(cases=8, seed=0)
    assert sum(hunt.kinds.values()) == hunt.n_cases >= 8
    assert not hunt.defects


def refuse():
    raise InputError("a file: found this, needs that")


def refuse_at_length():
    raise InputError("x" * 10_000)


def unpickle():
    import pickle

    pickle.loads(pickle.dumps(law.Limits(1, 1)))


ACTS = {
    "accepted": lambda: Path("inside").write_text("x"),
    "refused": refuse,
    "traceback": lambda: [][0],
    "timeout": lambda: time.sleep(60),
    "memory": lambda: np.ones(1 << 30),
    "crash": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
ESCAPES = {
    "a program": lambda: os.system("true"),
    "a file outside": lambda: Path("../outside").write_text("x"),
    "what lies beside": lambda: Path("../beside/secret").read_text(),
    "a pickle": unpickle,
}


def verdict(tmp_path, act):
    """Return the verdict on an act that comes after a harmless case."""
    (tmp_path / law.BESIDE).mkdir()
    (tmp_path / law.BESIDE / "secret").write_text("x")

    def drive():
        if Path("hostile").exists():
            act()

    worker = law.Worker(drive, tmp_path, law.Limits(seconds=2, memory_mb=200), {})
    try:
        return worker.judge({"hostile": b""})
    finally:
        worker.stop()


@pytest.mark.parametrize("kind", ACTS)
def test_the_law_tells_what_a_case_came_to(tmp_path, kind):
    assert verdict(tmp_path, ACTS[kind]).kind == kind


@pytest.mark.parametrize("act", ESCAPES)
def test_the_law_sees_what_is_forbidden(tmp_path, act):
    assert verdict(tmp_path, ESCAPES[act]).kind == "escape"


def test_an_error_of_any_length_is_shown_short(tmp_path):
    assert verdict(tmp_path, refuse_at_length).kind == "refused"
