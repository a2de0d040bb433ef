r"""Keep the libraries of all steps in memory, and fork a process for every step that is asked for.

A small image takes less time than the import of what its steps need. Ends when standard input
does, that is with the process that started it; steps that run go on. The folder of the socket is
nobody else's, and is removed at the end.

Example
-------
    python workflow/scripts/warm.py FOLDER/SOCKET        # `start.py` asks at the socket
"""

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
from pathlib import Path

STEPS = ("tile", "infer", "cluster", "stitch", "measure", "report")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
PR_SET_PDEATHSIG = 1


def import_all() -> None:
    """Import what the steps import and load compiled kernels; no thread may come of it.

    A process that has threads cannot be forked safely.
    """
    os.environ.update(ONE_THREAD)
    for name in STEPS:
        importlib.import_module(name)
    import numpy as np

    from iaunet import fixedpoint, kernels

    # The first kernel loads what all need.
    kernels.box_sum(np.zeros((1, 1, 1), fixedpoint.DTYPE["seed"]))


def receive(connection: socket.socket) -> tuple[list[int], list[str]]:
    """Return the files and the facts that `start.py` sends."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    size = int.from_bytes(head, "big")
    message = bytearray()
    while len(message) < size:
        part = connection.recv(size - len(message))
        if not part:
            os._exit(1)  # who asked is gone
        message += part
    return files, bytes(message).decode("utf-8", "surrogateescape").split("\0")


def become(files: list[int], facts: list[str]) -> None:
    """Go on as the step itself."""
    # Not longer than the process that waits for it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
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
    runpy.run_path(words[0], run_name="__main__")


def keep(connection: socket.socket) -> None:
    """Run a step, and end it when the process that asked for it is no more."""
    files, facts = receive(connection)
    worker = os.fork()
    if worker == 0:
        connection.close()
        become(files, facts)
        return
    for file in files:
        os.close(file)
    ended = os.pidfd_open(worker)
    ready, _, _ = select.select([ended, connection], [], [])
    if connection in ready:
        os.kill(worker, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    if connection not in ready:
        connection.sendall(str(status).encode())
    os._exit(0)


def serve(address: str) -> None:
    """Fork for everyone who connects."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                keep(connection)
                return
            connection.close()
            forget_ended(os.WNOHANG)
    shutil.rmtree(Path(address).parent)
    forget_ended(0)


def forget_ended(how: int) -> None:
    """Take note of processes that have ended; with 0, wait until all have."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass


if __name__ == "__main__":
    import_all()
    gc.freeze()  # a collection would write to, and so copy, what was imported
    serve(sys.argv[1])
