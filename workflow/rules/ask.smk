"""Have steps of small images done by the warm process, without a shell and a Python to ask it."""

import contextlib
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import snakemake.benchmark

# What bash takes as it is, or between quotes; everything else is its business.
WORD = r"""(?:[\w./:=,+@%-]+|'[^']*'|"'")+"""
PLAIN = re.compile(
    rf" *((?:[A-Z_]+={WORD} +)*)python +({WORD}(?: +{WORD})*) +2> +({WORD}) *"
)


class Asked:
    """Stands where Snakemake starts a shell and waits for its end.

    A step that is asked for so ends with this process, as one that its shell starts. Where the
    warm process is no more, the shell does it.
    """

    def __init__(self, address, mask, plain, start_shell, options):
        settings, words, log = (shlex.split(part) for part in plain.groups())
        variables = options["env"] | dict(one.split("=", 1) for one in settings)
        names = {os.fsencode(key): os.fsencode(one) for key, one in variables.items()}
        self.pid, self.start_shell, self.is_killed = os.getpid(), start_shell, False
        self.shell = None
        with open(log[0], "w") as file:
            files = (0, 1, file.fileno())
            self.server = Asked.start.asked(address, words, names, mask, files)

    def wait(self):
        """Return the exit status of the step."""
        status = None if self.server is None else Asked.start.answer(self.server)
        if status is None and not self.is_killed:
            self.shell = self.start_shell()
            if self.is_killed:  # meanwhile
                self.shell.kill()
            return self.shell.wait()
        return -signal.SIGKILL if status is None else status

    def kill(self):
        """Have the step end."""
        self.is_killed = True
        if self.shell is not None:
            self.shell.kill()
        if self.server is not None:
            with contextlib.suppress(OSError):  # it has ended
                self.server.shutdown(socket.SHUT_RDWR)

    terminate = kill


class OnlySeconds:
    """Stands where Snakemake samples a process: this one asks, and another works.

    Every sample would look through all processes of the machine.
    """

    def __init__(self, pid, record, interval):
        record.process_gone = True  # it says "NA" then, without a warning

    def start(self):
        """Do nothing."""

    def cancel(self):
        """Do nothing."""


def ask_without_shell(address, prefix):
    """Have Snakemake ask for steps by itself; `prefix` is what comes before all commands."""
    # None is a promise of Snakemake's; a version that has them no more starts a shell.
    shells = sys.modules["snakemake.shell"]
    if not hasattr(snakemake.benchmark.BenchmarkRecord(), "process_gone"):
        return
    snakemake.benchmark.BenchmarkTimer = OnlySeconds
    if getattr(shells, "sp", None) is not subprocess:
        return
    Asked.start = SimpleNamespace(**runpy.run_path(step("start.py")))
    mask = os.umask(0)
    os.umask(mask)

    def started(command, **options):
        def start_shell():
            return subprocess.Popen(command, **options)

        plain = None
        if isinstance(command, str) and options.get("stdout") in (None, sys.stdout):
            plain = PLAIN.fullmatch(command.removeprefix(prefix))
        if plain is None:
            return start_shell()
        return Asked(address, mask, plain, start_shell, options)

    shells.sp = SimpleNamespace(**vars(subprocess) | {"Popen": started})
