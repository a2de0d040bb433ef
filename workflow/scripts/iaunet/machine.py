"""What a step runs on: memory, kind of processor, and the state of the repository."""

import contextlib
import ctypes
import functools
import platform
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
CODE = ("Snakefile", "config.yaml", "workflow", "envs", "resources/models")
"""What decides the result; notes beside it may change."""
VECTORS = ("avx512_bf16", "avx512f", "avx2", "asimd")
"""Kinds of arithmetic by which processors of one name may differ, the widest first."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
GIB = 2**30


def keep_memory() -> None:
    """Let the C library use freed memory again rather than give it back to the system.

    Large arrays come and go in every step, and the system fills each page that it gives with
    zeros. Only glibc is told; threads share one heap, for theirs cannot hold large arrays.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, GIB)
        mallopt(M_TRIM_THRESHOLD, 2 * GIB - 1)
        mallopt(M_ARENA_MAX, 1)


def has_cuda() -> bool:
    """Tell whether there is a driver of NVIDIA; if not, PyTorch need not be asked for a GPU."""
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL("libcuda.so.1"))
    return False


@functools.cache
def cpu() -> str:
    """Return the kind of processor, as far as the system tells: name, family, vectors."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text(errors="replace").split("\n\n")[0]
    facts = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    name = facts.get("model name") or platform.machine()
    kind = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return ", ".join([name, *kind, *[name for name in VECTORS if name in flags][:1]])


@functools.cache
def code() -> dict[str, object]:
    """Return the commit of the repository, and whether files in it were changed since.

    Both are None without git, or when the repository was unpacked without its history.
    """
    unknown = {"commit": None, "dirty": None}
    where = _git("rev-parse", "--show-toplevel", "HEAD")
    if where is None or len(where.splitlines()) != 2:
        return unknown
    top, commit = where.splitlines()
    if Path(top).resolve() != REPOSITORY:  # the history of a folder around it
        return unknown
    changed = _git("status", "--porcelain", "--", *CODE)
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(*words: str) -> str | None:
    """Return what git says about the repository, or None."""
    command = ["git", "--no-optional-locks", "-C", str(REPOSITORY), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
