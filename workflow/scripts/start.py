r"""Start a step in a process of `warm.py`, which has its libraries in memory; rules call this.

Imports nothing but the standard library's smallest part: its own start is what it saves.

Example
-------
    python -I -S workflow/scripts/start.py SOCKET workflow/scripts/tile.py --image ...
"""

import os
import signal
import socket
import sys


def status_of(address: str, words: list[str]) -> int | None:
    """Return the exit status of a step, minus the signal that ended it; None: there is no server.

    The step gets this process's files 0 to 2, folder, mask and environment, and ends when this
    process ends.
    """
    mask = os.umask(0)
    os.umask(mask)
    settings = [f"{key}={value}" for key, value in os.environ.items()]
    folder = os.getcwd()  # noqa: PTH109  pathlib takes as long to import as all the rest
    facts = [folder, str(mask), str(len(words)), *words, *settings]
    message = "\0".join(facts).encode("utf-8", "surrogateescape")
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(address)
            socket.send_fds(server, [len(message).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(message)
            answer = server.recv(16)
    except OSError:
        return None
    return int(answer) if answer else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    address, *words = sys.argv[1:]
    status = status_of(address, words)
    if status is None:
        os.execv(sys.executable, [sys.executable, *words])
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
