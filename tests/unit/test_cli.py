import os
import shutil
import subprocess
import sys

import pytest

from iaunet import cli
from runs import REPOSITORY


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_and_a_folder_get_their_name_when_they_are_whole(tmp_path):
    with cli.write_whole(tmp_path / "a.txt") as partial:
        partial.write_text("one")
        assert not (tmp_path / "a.txt").exists()
    for text in ("old", "new"):
        with cli.write_whole(tmp_path / "b.zarr") as partial:
            partial.mkdir()
            (partial / text).write_text(text)
    assert names(tmp_path) == ["a.txt", "b.zarr", "new"]


def test_a_failure_leaves_the_earlier_output_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("earlier")

    def killed():
        with cli.write_whole(tmp_path / "a.txt") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert (tmp_path / "a.txt").read_text() == "earlier"
    assert names(tmp_path) == ["a.txt"]


def test_a_kill_while_the_old_folder_is_deleted_leaves_the_new_one(tmp_path, monkeypatch):
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr/old").write_text("old")
    real = cli.remove

    def killed(path):
        if "-old" in path.name:
            raise SystemExit
        real(path)

    monkeypatch.setattr(cli, "remove", killed)

    def replaced():
        with cli.write_whole(tmp_path / "b.zarr") as partial:
            partial.mkdir()
            (partial / "new").write_text("new")

    with pytest.raises(SystemExit):
        replaced()
    assert names(tmp_path / "b.zarr") == ["new"]


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    node = os.uname().nodename
    for process in (done.pid, f"{done.pid}-old", os.getppid(), "x"):
        (tmp_path / f".a.txt.{process}.{node}.partial").write_text("half")
    (tmp_path / f".a.txt.{done.pid}.elsewhere.partial").write_text("half")
    with cli.write_whole(tmp_path / "a.txt") as partial:
        partial.write_text("one")
    assert names(tmp_path) == sorted(
        [
            f".a.txt.{os.getppid()}.{node}.partial",
            f".a.txt.x.{node}.partial",
            f".a.txt.{done.pid}.elsewhere.partial",
            "a.txt",
        ]
    )


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (MemoryError(), "error: not enough memory"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (OSError(13, "Permission denied", "a.txt"), "error: a.txt: Permission denied"),
        (shutil.Error([("a", "b", "[Errno 28] No space")]), "error: b: [Errno 28] No space"),
    ],
)
def test_what_the_machine_lacks_is_one_line(capsys, raised, says):
    def main():
        raise raised

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(says)


def test_a_step_ends_with_all_that_was_asked_for_at_its_end():
    script = """
import atexit, sys, threading, time
from iaunet import cli
def main():
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("said", end=" ")
cli.run(main)
"""
    words = [sys.executable, "-c", script]
    done = subprocess.run(
        words, cwd=REPOSITORY / "workflow/scripts", capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["said", "thread", "at", "exit"]
