r"""Start a step in a process of `warm.py`, which has its libraries in memory; rules call this.

Imports what is part of the interpreter and no more: its own start is what it saves, and the
modules `socket` and `signal` take longer than all the rest.

Example
-------
    python -I -S workflow/scripts/start.py SOCKET workflow/scripts/tile.py --image ...
"""

import _signal
import _socket
import os
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
    files = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    server = _socket.socket(_socket.AF_UNIX)
    try:
        server.connect(address)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)
        server.sendmsg([len(message).to_bytes(8, "big")], [rights])
        server.sendall(message)
        answer = server.recv(16)
    except OSError:
        return None
    return int(answer) if answer else None


def main() -> None:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    address, *words = sys.argv[1:]
    status = status_of(address, words)
    if status is None:
        os.execv(sys.executable, [sys.executable, *words])
    if status < 0:
        if -status != _signal.SIGKILL:
            _signal.signal(-status, _signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)  # nothing was written that could wait


if __name__ == "__main__":
    main()
