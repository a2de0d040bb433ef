r"""Have a step done by a process of `warm.py`, which has its libraries in memory.

`python` in the shell of a rule is this; and Snakemake itself asks with it, see `ask.smk`.

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


def asked(
    address: str, words: list[str], settings: dict[bytes, bytes], mask: int, files: tuple[int, ...]
) -> _socket.socket | None:
    """Ask for a step; return the connection, or None where there is no server.

    The step gets three files, environment and mask, and this process's folder. It ends when the
    connection does.
    """
    facts = [str(fact).encode("utf-8", "surrogateescape") for fact in (mask, len(words), *words)]
    pairs = [key + b"=" + value for key, value in settings.items()]
    message = b"\0".join([posix.getcwdb(), *facts, *pairs])
    numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in files)
    server = _socket.socket(_socket.AF_UNIX)
    try:
        server.connect(address)
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)
        server.sendmsg([len(message).to_bytes(8, "big")], [rights])
        server.sendall(message)
    except OSError:
        server.close()
        return None
    return server


def answer(server: _socket.socket) -> int | None:
    """Return the exit status of a step, minus the signal that ended it; None: no server."""
    try:
        said = server.recv(16)
    except OSError:
        return None
    return int(said) if said else None


def main() -> None:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    address, *words = sys.argv[1:]
    mask = posix.umask(0)
    posix.umask(mask)
    server = asked(address, words, posix.environ, mask, (0, 1, 2))
    status = None if server is None else answer(server)
    if status is None:
        posix.execv(sys.executable, [sys.executable, *words])
    if status < 0:
        if -status != _signal.SIGKILL:
            _signal.signal(-status, _signal.SIG_DFL)
        posix.kill(posix.getpid(), -status)
    posix._exit(status)  # nothing was written that could wait


if __name__ == "__main__":
    main()
