r"""Keep the libraries of all steps in memory, and fork a process for every step that is asked for.

A small image takes less time than the import of what its steps need. Ends when standard input
does, that is with the process that started it; steps that run go on. The folder of the socket is
nobody else's, and is removed at the end.

Example
-------
    python workflow/scripts/warm.py FOLDER/SOCKET        # `start.py` asks at the socket
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import types
from pathlib import Path

STEPS = ("tile", "infer", "cluster", "stitch", "measure", "report")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
PR_SET_PDEATHSIG = 1
Stamp = tuple[int, ...]
"""Of a file: device, number, size and time; an edited file has another one."""


class Step:
    """A process that does a step, and the connection to the one that waits for its end."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.ended = os.pidfd_open(pid)
        self.connection: socket.socket | None = connection

    def stop(self) -> None:
        """End it early: nobody waits for it any more."""
        os.kill(self.pid, signal.SIGTERM)
        self.connection.close()
        self.connection = None

    def tell(self) -> None:
        """Tell how it has ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if self.connection is not None:
            with contextlib.suppress(OSError):  # who asked may be gone since
                self.connection.sendall(str(status).encode())
        self.forget()

    def forget(self) -> None:
        """Close what belongs to it."""
        os.close(self.ended)
        if self.connection is not None:
            self.connection.close()


def import_all() -> None:
    """Import what the steps import and load compiled kernels; no thread may come of it.

    A process that has threads cannot be forked safely.
    """
    os.environ.update(ONE_THREAD)
    for name in STEPS:
        importlib.import_module(name)
    import numpy as np

    from iaunet import fixedpoint, kernels, machine

    # The first kernel loads what all need.
    kernels.box_sum(np.zeros((1, 1, 1), fixedpoint.DTYPE["seed"]))
    machine.cpu()
    machine.code()


def stamp(path: str) -> Stamp:
    """Return what tells a file from what it was."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def compiled() -> dict[str, tuple[Stamp, types.CodeType]]:
    """Return the code of all steps, by their paths in the words of the rules."""
    paths = [str(Path(sys.argv[0]).with_name(f"{name}.py")) for name in STEPS]
    return {path: (stamp(path), compile(Path(path).read_bytes(), path, "exec")) for path in paths}


def serve(address: str, code: dict[str, tuple[Stamp, types.CodeType]]) -> None:
    """Fork for everyone who connects, tell how the step ended, and end it when nobody waits."""
    server, asked, steps = os.getpid(), True, []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        while asked or steps:
            ready = events([listener, sys.stdin] if asked else [], steps)
            if sys.stdin.fileno() in ready:
                asked = False
            elif listener.fileno() in ready:
                connection, _ = listener.accept()
                pid = os.fork()
                if pid == 0:
                    for step in steps:
                        step.forget()
                    listener.close()
                    work(connection, server, code)
                    return
                steps.append(Step(pid, connection))
            for step in list(steps):
                if step.ended in ready:
                    step.tell()
                    steps.remove(step)
                elif step.connection is not None and step.connection.fileno() in ready:
                    step.stop()
    shutil.rmtree(Path(address).parent)


def events(files: list, steps: list[Step]) -> set[int]:
    """Wait; return the numbers of files with something to read, or with nobody at the other end."""
    waiting = select.poll()
    for file in files:
        waiting.register(file, select.POLLIN)
    for step in steps:
        waiting.register(step.ended, select.POLLIN)
        if step.connection is not None:
            waiting.register(step.connection, 0)  # what it says is for the step
    return {number for number, _ in waiting.poll()}


def work(
    connection: socket.socket, server: int, code: dict[str, tuple[Stamp, types.CodeType]]
) -> None:
    """Do the step that is asked for; not longer than the process that tells how it ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != server:
        os._exit(1)
    files, facts = receive(connection)
    connection.close()
    path = become(files, facts)
    try:
        run(path, code)
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        end(error.code or 0)
    end(0)


def receive(connection: socket.socket) -> tuple[list[int], list[str]]:
    """Return the files and the facts that `start.py` sends."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    size = int.from_bytes(head, "big")
    message = bytearray()
    while not message or len(message) < size:
        part = connection.recv(size - len(message))
        if not part:
            os._exit(1)  # who asked is gone
        message += part
    return files, bytes(message).decode("utf-8", "surrogateescape").split("\0")


def become(files: list[int], facts: list[str]) -> str:
    """Take over files, folder, mask, words and environment; return the path of the step."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    folder, mask, n_words, *rest = facts
    words, settings = rest[: int(n_words)], rest[int(n_words) :]
    os.chdir(folder)
    os.umask(int(mask))
    os.environ.clear()
    os.environ.update(setting.split("=", 1) for setting in settings)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).resolve().parent)
    return words[0]


def run(path: str, code: dict[str, tuple[Stamp, types.CodeType]]) -> None:
    """Run a script; what is compiled is not compiled again, unless its file is another now."""
    if path not in code or code[path][0] != stamp(path):
        sys.modules["iaunet.machine"].code.cache_clear()
        runpy.run_path(path, run_name="__main__")
        return
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    exec(code[path][1], vars(module))


def end(status: int) -> None:
    """End as Python does, but take nothing apart: that takes longer than many a step."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    import_all()
    code = compiled()
    gc.freeze()  # a collection would write to, and so copy, what was imported
    serve(sys.argv[1], code)
