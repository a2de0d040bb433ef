"""A step that is forked from a warm process is the step: same bytes, same status, same end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

import warm as server
from iaunet import synthetic

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
SLEEP = "import sys, time; print('here', flush=True); time.sleep(60)"


MODEL = SCRIPTS.parents[1] / "resources/models/nuclei-2d.safetensors"


@pytest.fixture(scope="module", params=["rehearsed", "not rehearsed"])
def warm(request, tmp_path_factory):
    """Yield the address of a warm process, and the process, when it serves."""
    folder = tmp_path_factory.mktemp("warm") / "own"
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", SCRIPTS / "warm.py", folder / "socket"]
    if request.param == "rehearsed":
        command += [MODEL, "80", "96"]
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=-1, stdout=log, stderr=log
        )
    with process:
        wait_for((folder / "socket").exists, seconds=120)
        nothing = folder.parent / "nothing.py"
        nothing.touch()
        with start(folder / "socket", nothing) as first:
            assert first.wait(240) == 0
        yield folder / "socket", process
        process.stdin.close()
        assert process.wait(30) == 0
    assert not folder.exists()


def wait_for(happened, seconds=30):
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def start(address, *words, **options):
    command = [sys.executable, "-I", "-S", SCRIPTS / "start.py", address, *words]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return path


@contextlib.contextmanager
def not_ready(folder, scripts=SCRIPTS):
    """Start a warm process; yield its address as soon as it listens, and the process."""
    folder.mkdir()
    address = folder / "socket"
    with subprocess.Popen(
        [sys.executable, scripts / "warm.py", address], stdin=subprocess.PIPE
    ) as process:
        wait_for(address.exists)
        yield address, process


def test_the_process_has_no_threads_that_a_fork_would_lose(warm):
    assert psutil.Process(warm[1].pid).num_threads() == 1


def test_a_rehearsal_does_all_steps_without_an_error(warm):
    said = (warm[0].parents[1] / "log").read_text()
    assert "Traceback" not in said
    assert "error" not in said


def test_who_asks_before_it_is_ready_waits_for_it(tmp_path):
    with not_ready(tmp_path / "own") as (address, process):
        with start(address, script(tmp_path, "import os; print(os.getppid())")) as asks:
            assert asks.communicate(timeout=120) == (f"{process.pid}\n", "")
        process.stdin.close()


def test_who_waits_for_one_that_ends_starts_by_itself(tmp_path):
    with (
        not_ready(tmp_path / "own") as (address, process),
        start(address, script(tmp_path, "print('done')")) as asks,
    ):
        time.sleep(0.3)
        process.kill()
        assert asks.communicate(timeout=60) == ("done\n", "")


@pytest.fixture
def scripts(tmp_path):
    """Return a copy of the steps, to edit."""
    folder = tmp_path / "repository/workflow/scripts"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_step_that_was_edited_since_is_run_as_it_is_now(tmp_path, scripts):
    with not_ready(tmp_path / "own", scripts) as (address, process):
        with start(address, scripts / "tile.py", "--help") as before:
            assert before.communicate(timeout=120)[0].startswith("usage: tile.py")
        (scripts / "tile.py").write_text("print('edited')")
        with start(address, scripts / "tile.py", "--help") as after:
            assert after.communicate(timeout=60) == ("edited\n", "")
        process.stdin.close()


def tile_words(folder, n):
    """Return options that make tiles of a drawn image in a folder."""
    folder.mkdir()
    image, _ = synthetic.draw_nuclei((80, 96), np.random.default_rng(n), diameter_px=20)
    tifffile.imwrite(folder / "image.tif", image)
    words = [*server.REHEARSAL["tile"].split(), "--model", str(MODEL), "--record", "record.json"]
    return [word if word != "x" else f"x{n}" for word in words]


def ask(address, folder, *words, status=0):
    """Have a step done; return the process that did it."""
    with start(address, SCRIPTS / "tile.py", *words, cwd=folder) as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    return said


def workers(process):
    return {child.pid for child in psutil.Process(process.pid).children()}


def test_a_process_that_has_done_a_step_does_the_next_one_with_the_same_bytes(warm, tmp_path):
    alone = []
    for n in range(2):
        ask(warm[0], tmp_path / f"{n}", *tile_words(tmp_path / f"{n}", n))
        alone.append(workers(warm[1]))
        words = tile_words(tmp_path / f"plain{n}", n)
        subprocess.run(
            [sys.executable, SCRIPTS / "tile.py", *words],
            cwd=tmp_path / f"plain{n}",
            check=True,
            capture_output=True,
        )
        assert files(tmp_path / f"{n}") == files(tmp_path / f"plain{n}")
    assert len(alone[0]) == 1
    assert alone[0] == alone[1]


def files(folder):
    """Return the bytes of all files but the record, which tells of the process."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if p.name != "record.json"}


def test_the_record_of_a_step_does_not_count_what_those_before_it_used(warm, tmp_path):
    used = []
    for n in range(4):
        ask(warm[0], tmp_path / f"{n}", *tile_words(tmp_path / f"{n}", n))
        used.append(json.loads((tmp_path / f"{n}/record.json").read_text())["cpu_seconds"])
    assert used[-1] < sum(used[:-1])


def test_a_step_that_fails_leaves_nothing_to_the_next(warm, tmp_path):
    ask(warm[0], tmp_path / "a", *tile_words(tmp_path / "a", 0))
    before = workers(warm[1])
    (tmp_path / "a/image.tif").unlink()
    words = tile_words(tmp_path / "b", 1)
    assert "image.tif" in ask(warm[0], tmp_path / "a", *words, status=1)
    wait_for(lambda: not before & workers(warm[1]))
    ask(warm[0], tmp_path / "b", *words)


def test_a_process_that_waits_for_a_step_and_is_killed_is_replaced(warm, tmp_path):
    ask(warm[0], tmp_path / "a", *tile_words(tmp_path / "a", 0))
    (pid,) = workers(warm[1])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not workers(warm[1]))
    ask(warm[0], tmp_path / "b", *tile_words(tmp_path / "b", 1))


def test_a_process_that_waits_for_a_step_holds_no_file_of_the_last(warm, tmp_path):
    ask(warm[0], tmp_path / "a", *tile_words(tmp_path / "a", 0))
    (pid,) = workers(warm[1])
    held = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)}
    assert held == {os.devnull}


def test_a_step_ends_as_python_does(warm, tmp_path):
    text = (
        "import atexit, sys, tempfile, threading, time\n"
        "atexit.register(print, 'at exit', end='')\n"
        "folder = tempfile.TemporaryDirectory(dir='.')\n"
        "threading.Thread(target=lambda: time.sleep(0.2) or print('thread')).start()\n"
        "sys.stderr.write('log')\n"
    )
    path = script(tmp_path, text)
    with start(warm[0], path, cwd=tmp_path) as process:
        assert process.communicate(timeout=60) == ("thread\nat exit", "log")
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_ours_shows_its_traceback(warm, tmp_path):
    with start(warm[0], script(tmp_path, "1 / 0")) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "Traceback" in err
    assert "ZeroDivisionError" in err


def test_a_step_does_what_it_does_without(warm, tmp_path):
    said = []
    for name, command in {
        "warm": [sys.executable, "-I", "-S", SCRIPTS / "start.py", warm[0]],
        "plain": [sys.executable],
    }.items():
        (tmp_path / name).mkdir()
        words = [*command, SCRIPTS / "evaluate.py", "--predicted", "none.tif"]
        words += ["--reference", "none.tif"]
        done = subprocess.run(
            [str(word) for word in words], cwd=tmp_path / name, capture_output=True, text=True
        )
        said.append((done.returncode, done.stdout, done.stderr))
    assert said[0] == said[1]
    assert said[0][0] == 1
    assert said[0][2].startswith("error: none.tif")


def test_environment_folder_arguments_and_files_are_those_of_who_asks(warm, tmp_path):
    text = "import os, sys; print(os.getcwd(), os.environ['ODD'], sys.argv[1:], sys.stdin.read())"
    with start(
        warm[0],
        script(tmp_path, text),
        "a b",
        "é\n",
        stdin=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"ODD": "x=y z"},
    ) as process:
        out, err = process.communicate("in")
    assert (out, err) == (f"{tmp_path} x=y z ['a b', 'é\\n'] in\n", "")


@pytest.mark.parametrize("status", [0, 1, 2, 77])
def test_the_exit_status_is_that_of_the_step(warm, tmp_path, status):
    with start(warm[0], script(tmp_path, f"import sys; sys.exit({status})")) as process:
        assert process.wait(30) == status


def test_a_step_that_is_killed_looks_killed(warm, tmp_path):
    text = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with start(warm[0], script(tmp_path, text)) as process:
        assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_step_ends_with_the_process_that_asked_for_it(warm, tmp_path, how):
    with start(warm[0], script(tmp_path, SLEEP)) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(how)
        assert process.wait(30) == -how
    wait_for(lambda: all(map(is_over, children(warm[1]))))


def children(process):
    return psutil.Process(process.pid).children(recursive=True)


def is_over(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_without_a_warm_process_python_starts_by_itself(tmp_path):
    with start(tmp_path / "none", script(tmp_path, "print('done')")) as process:
        assert process.communicate() == ("done\n", "")
        assert process.returncode == 0


def test_a_step_goes_on_when_the_warm_process_is_no_more(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    text = "import time; print('here', flush=True); time.sleep(1); open('made', 'w').close()"
    command = [sys.executable, SCRIPTS / "warm.py", folder / "socket"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as warm_one:
        wait_for((folder / "socket").exists, seconds=120)
        with start(folder / "socket", script(tmp_path, text), cwd=tmp_path) as process:
            assert process.stdout.readline() == "here\n"
            warm_one.kill()
            assert process.wait(30) == 0
    assert (tmp_path / "made").exists()
