"""Options, logging, whole outputs and exit status common to all steps."""

import argparse
import atexit
import contextlib
import functools
import gc
import glob
import json
import logging
import os
import platform
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from iaunet import __version__, machine, sealed
from iaunet.errors import InputError, OptionError, one_line

log = logging.getLogger("iaunet")

RECORDED_PACKAGES = ("numpy", "scipy", "scikit-image", "numba", "torch", "zarr", "tifffile")


def base_parser(doc: str) -> argparse.ArgumentParser:
    """Return a parser that shows the module's docstring and has the options of every step."""
    summary, _, rest = doc.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--record", type=Path, help="JSON to write: options, versions, seconds, peak memory"
    )
    return parser


def add_sizes(
    parser: argparse.ArgumentParser,
    option: str,
    text: str,
    words: Sequence[str],
    default: Sequence[str] | None = None,
) -> None:
    """Add an option that takes one number per axis, or one of `words`; required by default."""

    def length(text: str) -> str | int:  # argparse shows this name
        return text if text in words else int(text)

    parser.add_argument(
        option,
        nargs="+",
        type=length,
        required=default is None,
        default=default,
        metavar="N",
        help=f"{text}: {', '.join(words)} or one number per axis, [z] y x, in pixels",
    )


def sizes(option: str, values: Sequence[str | int]) -> str | tuple[int, ...]:
    """Return the word, or the two or three numbers, that an `add_sizes` option was given."""
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    if len(values) not in (2, 3) or any(isinstance(value, str) for value in values):
        found = " ".join(str(value) for value in values)
        raise OptionError(f"{option}: found '{found}', needs [z] y x, two or three numbers")
    return tuple(int(value) for value in values)


def settings(option: str, words: Sequence[str]) -> dict[str, object]:
    """Return KEY=VALUE words as settings; a value is a number or numbers with commas.

    Examples
    --------
    >>> settings("--set", ["seed=0.4", "seed_window=1,3,3"])
    {'seed': 0.4, 'seed_window': [1, 3, 3]}
    """
    found: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise OptionError(f"{option}: found '{word}', needs KEY=VALUE, for example seed=0.4")
        if key in found:
            raise OptionError(f"{option}: '{key}' is given twice; remove one")
        try:
            found[key] = json.loads(f"[{text}]" if "," in text and "[" not in text else text)
        except ValueError:
            found[key] = text
    return found


def mapping(option: str, text: str) -> dict:
    """Return settings that an option was given as JSON text.

    Examples
    --------
    >>> mapping("--config", '{"device": "cpu"}')
    {'device': 'cpu'}
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise OptionError(f"{option}: not JSON: {error}; needs settings by key") from None
    if not isinstance(found, dict):
        raise OptionError(f"{option}: found '{text[:40]}'; needs settings by key")
    return found


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a sibling path to write a file or folder to; it gets its final name on success.

    A failure or a kill leaves only a name that ends with ``.partial``; leftovers of earlier
    processes of this host are removed first. An existing output of the same name is replaced
    at the end; a folder is moved aside before it is deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = _partial(path, os.getpid())
    remove(partial)
    try:
        yield partial
    except BaseException:
        remove(partial)
        raise
    if path.is_dir() and not path.is_symlink():
        old = _partial(path, f"{os.getpid()}-old")
        path.replace(old)
        partial.replace(path)
        remove(old)
    else:
        partial.replace(path)


def _partial(path: Path, process: object) -> Path:
    return path.with_name(f".{path.name}.{process}.{platform.node()}.partial")


def _remove_leftovers(path: Path) -> None:
    """Remove what processes of this host that are no more have left beside `path`."""
    pattern = glob.escape(_partial(path, "PID").name).replace("PID", "*")
    for found in path.parent.glob(pattern):
        process = found.name[len(path.name) + 2 :].split(".")[0].removesuffix("-old")
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            remove(found)
        except (ValueError, PermissionError):
            continue


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing happens when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Recorder:
    """Write what a step used: options, versions, host, seconds and peak memory.

    Examples
    --------
    >>> recorder = Recorder("tile", args)          # doctest: +SKIP
    >>> recorder.write(n_tiles=12)                 # doctest: +SKIP
    """

    used_before = 0.0
    """CPU seconds of this process that belong to earlier steps."""

    def __init__(self, step: str, args: argparse.Namespace) -> None:
        self.step = step
        self.options = {key: _plain(value) for key, value in vars(args).items() if key != "record"}
        self.path = args.record
        self.started = time.time()
        self.clock = time.perf_counter()

    def facts(self, **more: object) -> dict[str, object]:
        """Return what is known up to now, with `more` facts of the step itself."""
        return {
            "step": self.step,
            "version": __version__,
            "started": round(self.started, 3),
            "seconds": round(time.perf_counter() - self.clock, 3),
            "cpu_seconds": round(cpu_seconds() - self.used_before, 3),
            "peak_memory_mb": peak_memory_mb(),
            "host": platform.node(),
            "cpu": machine.cpu(),
            "code": machine.code(),
            "python": platform.python_version(),
            "packages": package_versions(),
            "options": self.options,
            **more,
        }

    def write(self, **more: object) -> None:
        """Write the record when the step was asked for one."""
        if self.path is not None:
            with write_whole(self.path) as partial:
                partial.write_text(sealed.dumps(self.facts(**more)))


def start_anew() -> None:
    """Make ready for another step in this process: what those before have used is not its own."""
    gc.collect()
    with contextlib.suppress(OSError):  # another system, which counts otherwise
        Path("/proc/self/clear_refs").write_text("5")  # the largest size is that of now
    Recorder.used_before = cpu_seconds()


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its threads so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far, MiB.

    ``ru_maxrss`` would count the process that started this one, too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that decide the numbers."""
    found = {}
    for name in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _plain(value: object) -> object:
    if isinstance(value, list) and value and isinstance(value[0], Path):
        return f"{len(value)} files"  # one per batch: naming them all would grow as its square
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def run(main: Callable[[], None]) -> None:
    """Run a step and end, with its exit status."""
    attempt(main)
    end()


def attempt(main: Callable[[], None]) -> None:
    """Run a step: log to stderr, show an `InputError` as one line and exit."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s"
    )
    machine.keep_memory()
    gc.freeze()  # what was imported stays: the many small objects of zarr are collected faster
    try:
        main()
    except InputError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        sys.exit(2 if isinstance(error, OptionError) else 1)
    except shutil.Error as error:  # of copying a folder: what went wrong with each file
        _, target, reason = error.args[0][0]
        sys.stderr.write(f"error: {target}: {reason}\n")
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {one_line(f'{where}{error.strerror}')}\n")
        sys.exit(1)
    except MemoryError:
        sys.stderr.write("error: not enough memory; give the job more (mem_mb) or smaller tiles\n")
        sys.exit(1)


def end() -> None:
    """End as Python does, but take nothing apart: that takes longer than many a step."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
