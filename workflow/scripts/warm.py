r"""Keep the libraries of all steps in memory, and fork processes that do the steps asked for.

A small image takes less time than the import of what its steps need; and a fork, with the pages of
memory that it copies when they are written to, more than many a step, so that a process does one
step after the other. Ends when standard input does, that is with the process that started it; steps
that run go on. The folder of the socket is nobody else's, and is removed at the end.

Example
-------
    python workflow/scripts/warm.py FOLDER/SOCKET        # `start.py` and `ask.smk` ask there
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
import weakref
from collections.abc import Sequence
from pathlib import Path

from iaunet import checksums

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
STEPS_EACH = 600
"""Of a worker, then another is forked: memory that is lost in small portions comes back."""
MORE_MB = 256
"""A worker that has grown by more ends, too: others may need it."""
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
Known = dict[str, tuple[checksums.Stamp, str]]


class Worker:
    """A process that does steps, and the connection to the one that waits for a step's end."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self.ended = os.pidfd_open(pid)
        self.connection: socket.socket | None = None
        self.works = False

    def take(self, connection: socket.socket) -> bool:
        """Have it do a step for who asks; tell whether it is there to do so."""
        try:
            socket.send_fds(self.control, [b"1"], [connection.fileno()])
        except OSError:
            return False
        self.connection, self.works = connection, True
        return True

    def has_done(self) -> bool:
        """Tell whether it is ready for another step; else it is about to end."""
        with contextlib.suppress(OSError):
            return bool(self.control.recv(1))
        return False

    def stop(self) -> None:
        """End it early: nobody waits for it any more, and it gets no other step."""
        os.kill(self.pid, signal.SIGTERM)
        self.connection.close()
        self.connection = None

    def tell(self, status: int) -> None:
        """Tell how a step has ended."""
        if self.connection is not None:
            with contextlib.suppress(OSError):  # who asked may be gone since
                self.connection.sendall(str(status).encode())
            self.connection.close()
        self.connection, self.works = None, False

    def bury(self) -> None:
        """Tell how it has ended, and forget it."""
        self.tell(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))
        self.forget()

    def forget(self) -> None:
        """Close what belongs to it."""
        os.close(self.ended)
        self.control.close()
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


def stamps() -> Known:
    """Return the stamps and names of all steps, by their paths in the words of the rules."""
    paths = {Path(sys.argv[0]).with_name(f"{name}.py"): name for name in STEPS}
    return {str(path): (checksums.stamp(path), name) for path, name in paths.items()}


def serve(listener: socket.socket, known: Known) -> None:
    """Give steps to workers, tell how each ended, and end a worker when nobody waits for it."""
    asked, workers = True, []
    while asked or any(worker.works for worker in workers):
        ready = events([listener, sys.stdin] if asked else [], workers)
        if sys.stdin.fileno() in ready:
            asked = False
        elif listener.fileno() in ready:
            connection, _ = listener.accept()
            if not any(worker.take(connection) for worker in workers if not worker.works):
                workers.append(hire([*workers, listener, connection], known))
                workers[-1].take(connection)
        for worker in list(workers):
            if worker.ended in ready:
                worker.bury()
                workers.remove(worker)
            elif worker.connection is None:
                continue
            elif worker.control.fileno() in ready:
                if worker.has_done():
                    worker.tell(0)
            elif worker.connection.fileno() in ready:
                worker.stop()
    for worker in workers:
        worker.control.close()
        worker.bury()


def events(files: list, workers: list[Worker]) -> set[int]:
    """Wait; return the numbers of files with something to read, or with nobody at the other end."""
    waiting = select.poll()
    for file in files:
        waiting.register(file, select.POLLIN)
    for worker in workers:
        waiting.register(worker.ended, select.POLLIN)
        if worker.connection is not None:
            waiting.register(worker.control, select.POLLIN)
            waiting.register(worker.connection, 0)  # what it says is for the worker
    return {number for number, _ in waiting.poll()}


def hire(others: list, known: Known) -> Worker:
    """Fork a worker; what is others' it closes."""
    server = os.getpid()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        for other in others:
            other.forget() if isinstance(other, Worker) else other.close()
        work(theirs, server, known)
    theirs.close()
    return Worker(pid, ours)


def work(control: socket.socket, server: int, known: Known) -> None:
    """Do the steps that are asked for; not longer than the process that tells how they end.

    One that fails, or is of another program, is the last: nothing of it is left for others.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != server:
        os._exit(1)
    from iaunet import cli, network

    began_mb = memory_mb()
    for left in reversed(range(STEPS_EACH)):
        path = become(*receive(asked_for(control)))
        if path not in known or known[path][0] != checksums.stamp(Path(path)):
            run_as_script(path)
            break
        cli.attempt(sys.modules[known[path][1]].main)
        if not left or memory_mb() > began_mb + MORE_MB or network.uses_gpu():
            break
        rest()
        control.sendall(b"1")
    cli.end()


def asked_for(control: socket.socket) -> socket.socket:
    """Return the connection to who asks for the next step; without one, end."""
    _, files, _, _ = socket.recv_fds(control, 1, 1)
    if not files:
        os._exit(0)
    return socket.socket(fileno=files[0])


def memory_mb() -> float:
    """Return the resident size of this process, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def rest() -> None:
    """Let go of what belongs to who asked, and of what the step has left in memory."""
    from iaunet import cli

    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)
    cli.start_anew()


def receive(connection: socket.socket) -> tuple[list[int], list[str]]:
    """Return the files and the facts that `start.py` sends; who asked is the server's to know."""
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    size = int.from_bytes(head, "big")
    message = bytearray()
    while not message or len(message) < size:
        part = connection.recv(size - len(message))
        if not part:
            os._exit(1)  # who asked is gone
        message += part
    connection.close()
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


def run_as_script(path: str) -> None:
    """Run another program than the steps that are known, or one that was edited since."""
    from iaunet import machine

    machine.code.cache_clear()
    runpy.run_path(path, run_name="__main__")


def main() -> None:
    address, *model_and_shape = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    folder = Path(address).parent
    with socket.socket(socket.AF_UNIX) as listener:
        # Who asks from now on waits; if this process ends, it starts by itself.
        listener.bind(address)
        listener.listen(128)
        known = stamps()
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
        serve(listener, known)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
