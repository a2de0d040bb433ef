"""One case, one verdict: a target is driven in a forked process that is watched from all sides.

The law: a target accepts what it is given, or refuses it with one `InputError`. It ends in time,
within its memory, starts no program, opens no connection, unpickles no Python object, and neither
writes outside its folder nor reads what lies beside it.
"""

import contextlib
import gc
import json
import logging
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from iaunet.errors import InputError

ACCEPTED, REFUSED = "accepted", "refused"
DEFECTS = ("traceback", "timeout", "memory", "crash", "escape", "unclear")
"""A crash is a signal, an escape one of the acts that are forbidden, unclear is an error that is
longer than `LONGEST`, or holds what a terminal obeys."""
LONGEST = 6000
BESIDE = "beside"
"""Name of the folder next to that of the case, of which nothing may be read."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
FORBIDDEN += ("pickle.find_class", "socket.getaddrinfo", "webbrowser.", "ctypes.dlopen")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod")
CHANGES += ("os.truncate", "os.utime", "shutil.rmtree", "shutil.copyfile", "os.chown")

Drive = Callable[[], None]
CASES_PER_PROCESS = 500


@dataclass(frozen=True)
class Limits:
    """What one case may take: seconds, and MB beyond those of the process that forks it."""

    seconds: float
    memory_mb: float


@dataclass(frozen=True)
class Verdict:
    """What a case came to; `place` is the kind of failure and where it came from."""

    kind: str
    place: str = ""
    text: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0


class Worker:
    """A forked process that is driven case by case; it is replaced when it died or was killed."""

    def __init__(
        self, drive: Drive, folder: Path, limits: Limits, harmless: Mapping[str, bytes]
    ) -> None:
        self.drive = drive
        self.harmless = harmless
        self.inside = folder / "case"
        self.limits = limits
        self.child = 0
        self.n_cases = 0

    def judge(self, files: Mapping[str, bytes]) -> Verdict:
        """Return the verdict on a folder with these files; the folder is removed."""
        if self.n_cases == CASES_PER_PROCESS:
            self.stop()
        self._start()
        write(files, self.inside)
        began = time.monotonic()
        try:
            os.write(self.ask, b"\n")
            ready, _, _ = select.select([self.answer], [], [], self.limits.seconds)
            text = os.read(self.answer, 1 << 16) if ready else b""
        finally:
            shutil.rmtree(self.inside, ignore_errors=True)
        seconds = round(time.monotonic() - began, 3)
        self.n_cases += 1
        if text:
            return Verdict(**{**json.loads(text), "seconds": seconds})
        status = self.stop()
        if not ready:
            text = f"no end after {self.limits.seconds:g} s"
            return Verdict("timeout", "timeout", text, seconds)
        name = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
        return Verdict("crash", name, f"the process ended with {name}", seconds)

    def stop(self) -> int:
        """End the process; return its status."""
        if not self.child:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)
        _, status = os.waitpid(self.child, 0)
        os.close(self.ask)
        os.close(self.answer)
        self.child = self.n_cases = 0
        return status

    def _start(self) -> None:
        if self.child:
            return
        self.inside.mkdir(parents=True, exist_ok=True)
        write(self.harmless, self.inside)
        asked, self.ask = os.pipe()
        self.answer, answer = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            try:
                self._serve(asked, answer)
            finally:
                os._exit(0)
        os.close(asked)
        os.close(answer)
        os.read(self.answer, 1)
        shutil.rmtree(self.inside)

    def _serve(self, asked: int, answer: int) -> None:
        """Drive cases, one per byte that comes, in the forked process."""
        gc.freeze()
        logging.disable()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        self._warm(answer)
        most = int((_memory_mb("VmSize") + self.limits.memory_mb) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch = _Watch(self.inside)
        sys.addaudithook(watch)
        while os.read(asked, 1):
            verdict = self._case(watch)
            os.write(answer, json.dumps(asdict(verdict)).encode())

    def _warm(self, answer: int) -> None:
        """Drive a harmless case, which imports and compiles what all cases need."""
        os.chdir(self.inside)
        with open(os.devnull, "w") as sys.stderr:  # noqa: PTH123
            verdict = _driven(self.drive)
        if verdict.kind != ACCEPTED:
            verdict = Verdict("crash", "harmless", f"a harmless case was not accepted: {verdict}")
            sys.__stderr__.write(f"{verdict}\n")
        os.write(answer, b".")

    def _case(self, watch: "_Watch") -> Verdict:
        os.chdir(self.inside)
        said = self.inside / ".stderr"
        # HWM, the largest resident size, starts again.
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory_mb("VmRSS")
        with said.open("w", encoding="utf-8", errors="backslashreplace") as sys.stderr:
            watch.found, watch.on = [], True
            verdict = _driven(self.drive)
            watch.on = False
        used = round(_memory_mb("VmHWM") - before, 1)
        if watch.found:
            verdict = Verdict(
                "escape", watch.found[0].partition(":")[0], "\n".join(watch.found[:5])
            )
        elif used > self.limits.memory_mb:
            verdict = Verdict("memory", "peak", f"{used} MB")
        elif verdict.kind == REFUSED:
            verdict = _clear(verdict.text or said.read_text("utf-8", "replace"))
        return replace(verdict, peak_mb=used)


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of a case."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _driven(drive: Drive) -> Verdict:
    try:
        drive()
    except InputError as error:
        return _of_memory(error) or Verdict(REFUSED, text=str(error) or "no message")
    except SystemExit as stop:  # check.py lists its problems on stderr
        return Verdict(REFUSED if stop.code else ACCEPTED)
    except MemoryError as error:
        return _of_memory(error)
    except OSError as error:  # as `cli.run`: these name a file, or what the system says
        if error.filename is None and error.errno is None:
            return _traceback(error)
        return Verdict(REFUSED, text=f"{error.filename}: {error.strerror}")
    except BaseException as error:
        return _of_memory(error) or _traceback(error)
    return Verdict(ACCEPTED)


def _of_memory(error: BaseException) -> Verdict | None:
    """Return that memory was asked for beyond the limit, somewhere below an error."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, MemoryError) or "bad_alloc" in str(below):
            return Verdict("memory", _place(below), f"{below!r}"[:2000])
        below = below.__cause__ or below.__context__
    return None


def _traceback(error: BaseException) -> Verdict:
    text = "".join(traceback.format_exception(error, limit=-12))
    return Verdict("traceback", f"{type(error).__name__} in {_place(error)}", text[-3000:])


def _place(error: BaseException) -> str:
    """Return the last function of this project on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/workflow/scripts/" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else "?"


def _clear(said: str) -> Verdict:
    """Return a refusal, or that it is no clear line, as `cli.run` would show it."""
    from iaunet.errors import one_line

    shown = [one_line(line.removeprefix("error: ")) for line in said.splitlines()]
    if max(map(len, shown), default=0) > LONGEST:
        return Verdict("unclear", "long", f"{max(map(len, shown))} characters: {said[:500]}")
    if not all(line.isprintable() for line in shown):
        return Verdict("unclear", "control characters", ascii(said[:500]))
    return Verdict(REFUSED, text=said[:500])


def _memory_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _is_numba() -> bool:
    """Tell whether numba reads or keeps what it compiled, beside our own code."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith("numba/core/caching.py"):
            return True
        frame = frame.f_back
    return False


class _Watch:
    """An audit hook that notes what a case must not do."""

    def __init__(self, inside: Path) -> None:
        self.inside = str(inside.resolve())
        self.beside = str(inside.resolve().with_name(BESIDE))
        self.found: list[str] = []
        self.on = False

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.on or len(self.found) > 20:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)):
                if flags & WRITING:
                    self._outside(event, path)
                elif os.path.realpath(os.fsdecode(path)).startswith(self.beside):
                    self.found.append(f"read: {path!r}")
        elif event.startswith(FORBIDDEN) and not _is_numba():
            self.found.append(f"{event}: {arguments!r:.300}")
        elif event.startswith(CHANGES):
            for path in arguments[:2]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._outside(event, path)

    def _outside(self, event: str, path: str | bytes | os.PathLike) -> None:
        full = os.path.realpath(os.fsdecode(path))
        allowed = full.startswith((self.inside + os.sep, "/dev/", "/proc/"))
        if not (allowed or full == self.inside or _is_numba()):
            self.found.append(f"{event}: {full}")
