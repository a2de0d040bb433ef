"""What is asked for without a shell is what the shell would do; everything else is left to it."""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import snakemake.benchmark
from snakemake.shell import shell

import warm

FILE = Path(__file__).parents[2] / "workflow/rules/ask.smk"
START = FILE.parents[1] / "scripts/start.py"
LETTERS = list("ab0 '\"$`\\*?[]{}()<>|&;#~!\n\té=+,-./:@%^_")


@pytest.fixture
def ask(monkeypatch):
    """Return the functions of the file; Snakemake's own come back after the test."""
    shells = sys.modules["snakemake.shell"]
    monkeypatch.setattr(shells, "sp", shells.sp)
    monkeypatch.setattr(snakemake.benchmark, "BenchmarkTimer", snakemake.benchmark.BenchmarkTimer)
    names = {"step": lambda name: START.with_name(name)}
    exec(compile(FILE.read_text(), FILE, "exec"), names)
    return SimpleNamespace(**names)


def of_bash(text):
    """Return the words that bash makes of a text."""
    command = ["bash", "-c", f"printf '%s\\0' {text}"]
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


def test_words_are_those_of_bash(ask):
    rng = np.random.default_rng(0)
    for _ in range(60):
        n_words = rng.integers(1, 6)
        words = ["".join(rng.choice(LETTERS, rng.integers(0, 9))) for _ in range(n_words)]
        text = "  ".join(shlex.quote(word) for word in words)
        plain = ask.PLAIN.fullmatch(f" A_B=1  python {text} 2> logs/x.log ")
        settings, found, log = (shlex.split(part) for part in plain.groups())
        assert found == words == of_bash(text)
        assert (settings, log) == (["A_B=1"], ["logs/x.log"])


@pytest.mark.parametrize(
    "command",
    [
        "printf x | python a.py 2> log",
        "python a.py > out 2> log",
        "python a.py $HOME 2> log",
        "python a.py *.tif 2> log",
        "python a.py ~/x 2> log",
        'python "a b.py" 2> log',
        "python a.py; rm x 2> log",
        "python a.py & 2> log",
        "python a.py `x` 2> log",
        "python a.py 2> log; true",
        "python a.py\\ x 2> log",
        "python a.py {a,b} 2> log",
        "python a.py #x 2> log",
        "python a.py\nls 2> log",
        "python a.py",
        "perl a.pl 2> log",
    ],
)
def test_what_needs_a_shell_is_left_to_it(ask, command):
    assert ask.PLAIN.fullmatch(command) is None


@pytest.fixture
def run(ask, tmp_path, monkeypatch):
    """Return a function that has Snakemake run a command, asking at an address."""
    monkeypatch.chdir(tmp_path)
    prefix = 'set -e; python() { echo "$A" "$@" >&2; }; '
    monkeypatch.setattr(shell, "_process_prefix", prefix)

    def with_address(address, command):
        ask.ask_without_shell(str(address), prefix)
        shell(command)

    return with_address


def test_where_nobody_is_asked_the_shell_does_it(run, tmp_path):
    run(tmp_path / "none", "A=b python a.py 'c d' 2> log")
    assert (tmp_path / "log").read_text() == "b a.py c d\n"


@pytest.fixture
def server(tmp_path):
    """Yield an address and a function that gives the next answer; None: the server is gone."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def give(status, said):
            connection, _ = listener.accept()
            with connection:
                files, facts = warm.receive(connection.dup())
                os.write(files[2], b"log")
                for file in files:
                    os.close(file)
                said += facts
                if status is not None:
                    connection.sendall(str(status).encode())

        yield tmp_path / "socket", give


@pytest.mark.parametrize("status", [0, 1, -9, None])
def test_the_status_is_that_of_the_step_and_without_one_the_shell_does_it(run, server, status):
    address, give = server
    said = []
    answers = threading.Thread(target=give, args=(status, said))
    answers.start()
    fails = pytest.raises(subprocess.CalledProcessError, match=r"status 1|SIGKILL")
    with fails if status else contextlib.nullcontext():
        run(address, "A=b python a.py 'c d' 2> log")
    answers.join()
    folder, _, n_words, *rest = said
    assert (folder, rest[: int(n_words)]) == (str(Path.cwd()), ["a.py", "c d"])
    assert "A=b" in rest
    expected = "log" if status is not None else "b a.py c d\n"
    assert Path("log").read_text() == expected


def test_a_shell_that_does_the_step_ends_when_the_step_shall(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask.ask_without_shell(str(tmp_path / "none"), "")
    plain = ask.PLAIN.fullmatch("python a.py 2> log")
    started = threading.Event()

    def start_shell():
        found = subprocess.Popen(["sleep", "600"])
        started.set()
        return found

    asked = ask.Asked(str(tmp_path / "none"), 0o22, plain, start_shell, {"env": {}})
    status = []
    waiting = threading.Thread(target=lambda: status.append(asked.wait()))
    waiting.start()
    started.wait()
    asked.kill()
    waiting.join(60)
    assert status == [-9]
