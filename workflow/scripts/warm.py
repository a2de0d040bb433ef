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
import tempfile
import traceback
import types
import weakref
from collections.abc import Sequence
from pathlib import Path

STEPS = ("tile", "infer", "cluster", "stitch", "measure", "report")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
PR_SET_PDEATHSIG = 1
MADV_COLLAPSE = 25
HUGE_PAGE = 2 << 20
LARGEST_PX = 512
"""Of the image of a rehearsal, along an axis."""
REHEARSAL = {
    "tile": (
        "--image image.tif --name x --core-px auto --halo exact --batches 1 --percentiles 1 99.8"
        " --diameter-px native --output image.zarr --tiles tiles.json"
    ),
    "infer": (
        "--store image.zarr --tiles tiles.json --batch 0 --device cpu --backend torch --threads 1"
        " --output 0.zarr"
    ),
    "cluster": (
        "--tiles tiles.json --outputs 0.zarr --batch 0 --output labels.zarr --table table"
        " --sightings sightings --contacts contacts"
    ),
    "stitch": (
        "--store image.zarr --tiles tiles.json --labels labels.zarr --tables table"
        " --sightings sightings --contacts contacts --output x.ome.zarr --identities identities"
        " --seams seams.csv"
    ),
    "measure": (
        "--store x.ome.zarr --tiles tiles.json --identities identities --seams seams.csv"
        " --output-csv o.csv --output-parquet o --metrics metrics.json --provenance provenance.json"
    ),
    "report": (
        "--store x.ome.zarr --tiles tiles.json --objects o --metrics metrics.json"
        " --provenance provenance.json --seams seams.csv --output report.html"
    ),
}
"""Options of all steps, for an image in the working directory."""
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
    from iaunet import kernels, machine

    kernels.load()
    machine.cpu()
    machine.code()


def rehearse(model: str, shape: Sequence[int]) -> None:
    """Do all steps on a drawn image, so that they find what a first call makes.

    On the processor, and without a thread that stays.
    """
    import numpy as np
    import tifffile

    from iaunet import chunks, synthetic

    model = str(Path(model).resolve())
    drawn = [min(n, LARGEST_PX) for n in shape]
    image, _ = synthetic.draw_nuclei(drawn, np.random.default_rng(0), diameter_px=20)
    with tempfile.TemporaryDirectory(prefix="iaunet-") as folder, contextlib.chdir(folder):
        tifffile.imwrite("image.tif", image)
        try:
            for name, words in REHEARSAL.items():
                more = ["--model", model] if name in ("tile", "infer", "cluster") else []
                sys.modules[name].main([*words.split(), *more, "--record", f"{name}.record"])
        finally:
            chunks.end_threads()


def settle() -> None:
    """Make a fork cheap: it copies the table of pages at once, and every page that is written to.

    What was imported is neither collected nor taken apart at the end of a step. Memory lies in huge
    pages, as far as the system has them.
    """
    for one in getattr(weakref.finalize, "_registry", ()):  # no promise of Python's
        one.atexit = False
    gc.collect()
    gc.freeze()
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # another C library
        libc.malloc_trim(0)
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, access, _, _, inode, *name = line.split()
        first, end = (int(number, 16) for number in place.split("-"))
        first, end = -(-first // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]) and first < end:
            # Where it fails, pages stay small.
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_COLLAPSE)


def stamp(path: str) -> Stamp:
    """Return what tells a file from what it was."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def compiled() -> dict[str, tuple[Stamp, types.CodeType]]:
    """Return the code of all steps, by their paths in the words of the rules."""
    paths = [str(Path(sys.argv[0]).with_name(f"{name}.py")) for name in STEPS]
    return {path: (stamp(path), compile(Path(path).read_bytes(), path, "exec")) for path in paths}


def serve(listener: socket.socket, code: dict[str, tuple[Stamp, types.CodeType]]) -> None:
    """Fork for everyone who connects, tell how the step ended, and end it when nobody waits."""
    server, asked, steps = os.getpid(), True, []
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
            steps.append(Step(pid, connection))
        for step in list(steps):
            if step.ended in ready:
                step.tell()
                steps.remove(step)
            elif step.connection is not None and step.connection.fileno() in ready:
                step.stop()


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
    run(become(files, facts), code)
    # A step ends by itself; this is for other scripts.
    from iaunet import cli

    cli.end()


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
        from iaunet import machine

        machine.code.cache_clear()
        runpy.run_path(path, run_name="__main__")
        return
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    exec(code[path][1], vars(module))


def main() -> None:
    address, *model_and_shape = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    folder = Path(address).parent
    with socket.socket(socket.AF_UNIX) as listener:
        # Who asks from now on waits; if this process ends, it starts by itself.
        listener.bind(address)
        listener.listen(128)
        import_all()
        if model_and_shape:
            model, *shape = model_and_shape
            try:
                rehearse(model, [int(n) for n in shape])
            except (Exception, SystemExit):  # steps do without, and tell what is wrong
                traceback.print_exc()
        if len(list(Path("/proc/self/task").iterdir())) > 1:
            shutil.rmtree(folder)
            sys.exit("a thread is left, and would be missing in every fork")
        settle()
        serve(listener, compiled())
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
