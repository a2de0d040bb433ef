r"""Start a step in a process of `warm.py`, which has its libraries in memory; rules call this.

Imports what is part of the interpreter and no more: its own start is what it saves, and the
modules `os`, `socket` and `signal` take longer than all the rest.

Example
-------
    python -I -S workflow/scripts/start.py SOCKET workflow/scripts/tile.py --image ...
"""

import _signal
import _socket
import posix
import sys


def status_of(address: str, words: list[str]) -> int | None:
    """Return the exit status of a step, minus the signal that ended it; None: there is no server.

    The step gets this process's files 0 to 2, folder, mask and environment, and ends when this
    process ends.
    """
    mask = posix.umask(0)
    posix.umask(mask)
    settings = [key + b"=" + value for key, value in posix.environ.items()]
    facts = [str(fact).encode("utf-8", "surrogateescape") for fact in (mask, len(words), *words)]
    message = b"\0".join([posix.getcwdb(), *facts, *settings])
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
        posix.execv(sys.executable, [sys.executable, *words])
    if status < 0:
        if -status != _signal.SIGKILL:
            _signal.signal(-status, _signal.SIG_DFL)
        posix.kill(posix.getpid(), -status)
    posix._exit(status)  # nothing was written that could wait


if __name__ == "__main__":
    main()
