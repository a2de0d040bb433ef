r"""Run a step and tell which of its parts spent how many CPU seconds, JSON.

Functions of every part are wrapped; time in a function that another calls counts for the former
only. A thread counts its own time, so that what other threads do meanwhile is not counted twice,
and what the threads of zarr do for a call counts for the caller. Imports nothing but the standard
library before the step does: `import` is all from the start of Python until the step can begin.

Example
-------
    python benchmarks/speed/spent.py found.json cluster --tiles tiles.json --model ...
"""

import functools
import importlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow/scripts"

IMPORT = "import"
KERNELS = {"loading compiled kernels": ["numba.core.dispatcher:Dispatcher._compile_for_args"]}
READ_STORE = ["iaunet.omezarr:Stored.__getitem__"]
WRITE_TABLES = ["iaunet.tables:write_parquet", "iaunet.tables:write_csv"]

PARTS: dict[str, dict[str, list[str]]] = {
    "tile": {
        "reading the file": ["iaunet.images:open_image", "iaunet.images:Image.read"],
        "histogram": ["iaunet.normalize:Histogram.add", "iaunet.normalize:Histogram.limits"],
        "pyramid": ["iaunet.halving:halved_mean"],
        "compressing and writing": ["iaunet.omezarr:write_box"],
        "metadata of the store": [
            "iaunet.omezarr:create_image",
            "iaunet.omezarr:open_level",
            "iaunet.omezarr:levels",
            "iaunet.omezarr:update_attrs",
            "iaunet.omezarr:write_display",
        ],
        "checksum of the file": ["iaunet.checksums:facts"],
        **KERNELS,
    },
    "infer": {
        "loading the model": ["iaunet.checkpoint:load", "iaunet.backends:prepare"],
        "reading": READ_STORE,
        "scaling of intensities": ["iaunet.scale:resampled"],
        "network": ["iaunet.backends:Torch.inside", "iaunet.backends:Converted.inside"],
        "fixed point": ["iaunet.predict:quantised"],
        "blocks to tiles": ["iaunet.predict:Blocks._assemble"],
        "compressing and writing": ["iaunet.outputs:create", "iaunet.outputs:Writer.write"],
    },
    "cluster": {
        "reading": ["iaunet.outputs:Reader.read"],
        "seeds": ["iaunet.seeds:find_seeds", "iaunet.seeds:placed", "iaunet.seeds:kept"],
        "voxels to seeds": ["iaunet.kernels:assign"],
        "cleaning": ["iaunet.kernels:keep_component", "iaunet.kernels:fill_holes"],
        "what is known of objects": [
            "iaunet.kernels:name_core",
            "iaunet.kernels:see_objects",
            "iaunet.kernels:sum_fit",
            "iaunet.kernels:outlines",
            "iaunet.kernels:interfaces",
        ],
        "compressing and writing": ["iaunet.outputs:create_labels", "iaunet.outputs:Writer.write"],
        "tables": WRITE_TABLES,
        **KERNELS,
    },
    "stitch": {
        "reading tables": ["iaunet.numbering:read_tables"],
        "image and metadata of the store": [
            "iaunet.omezarr:link_image",
            "iaunet.omezarr:add_labels",
            "iaunet.omezarr:levels",
        ],
        "reading": ["iaunet.outputs:Reader.read"],
        "relabelling": ["iaunet.identity:relabel"],
        "pyramid": ["iaunet.omezarr:strided"],
        "compressing and writing": ["iaunet.omezarr:write_box"],
        "verdicts": ["stitch:judge", "stitch:identities", "stitch:seam_table"],
        "writing tables": WRITE_TABLES,
    },
    "measure": {
        "reading": READ_STORE,
        "boxes of objects": ["iaunet.labels:extents"],
        "sizes and intensities": ["iaunet.shapes:coordinate_sums", "iaunet.shapes:brightness"],
        "outlines and hulls": ["iaunet.features:_outlined"],
        "focus and saturation": ["measure:picture_quality"],
        "tables": [*WRITE_TABLES, "iaunet.tables:read_parquet", "iaunet.tables:read_csv"],
        "checksums": ["iaunet.checksums:facts"],
        **KERNELS,
    },
    "report": {
        "reading": [*READ_STORE, "iaunet.tables:read_parquet", "iaunet.tables:read_csv"],
        "sections and their outlines": ["iaunet.planes:planes"],
        "close-ups": [
            "iaunet.gallery:projections",
            "iaunet.gallery:zooms",
            "iaunet.gallery:unsure",
        ],
        "histograms and figures": [
            "iaunet.look:brushed",
            "iaunet.look:of_objects",
            "iaunet.plots:plane_figures",
            "iaunet.plots:document",
        ],
        "compressing the page": ["iaunet.plots:packed"],
        "putting it together": ["iaunet.page:render"],
    },
}
"""Of every step its parts, with the functions that do them."""


class Spent:
    """CPU seconds by part.

    Attributes
    ----------
    seconds : of every part, without the parts within it
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock, self._zarr = threading.Lock(), threading.Lock()
        self._local = threading.local()

    def within(self, part: str, work: Callable) -> Callable:
        """Return a function that does the same and counts for a part."""

        @functools.wraps(work)
        def counted(*args, **kwargs):
            open_parts = self._open_parts()
            here = {"helped": 0.0, "inner": 0.0}
            open_parts.append(here)
            began = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                took = time.thread_time() - began + here["helped"]
                open_parts.pop()
                if open_parts:
                    open_parts[-1]["helped"] += here["helped"]
                    open_parts[-1]["inner"] += took
                with self._lock:
                    self.seconds[part] += took - here["inner"]

        return counted

    def helped(self, sync: Callable) -> Callable:
        """Return what hands work to the threads of zarr; one call at a time, to know for whom."""

        @functools.wraps(sync)
        def counted(*args, **kwargs):
            with self._zarr:
                before = helpers()
                try:
                    return sync(*args, **kwargs)
                finally:
                    open_parts = self._open_parts()
                    if open_parts:
                        open_parts[-1]["helped"] += helpers() - before

        return counted

    def _open_parts(self) -> list[dict[str, float]]:
        """Return the parts in which this thread is, the innermost last."""
        if not hasattr(self._local, "parts"):
            self._local.parts = []
        return self._local.parts


def helpers() -> float:
    """Return the CPU seconds of the threads of zarr."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith("zarr")]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(one.ident)) for one in found)


def replace(name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Put something around a function or method, ``module:name``, wherever it is known."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, last)
    wrapped = wrap(original)
    setattr(owner, last, wrapped)
    for other in list(sys.modules.values()):
        for key, value in list(getattr(other, "__dict__", {}).items()):
            if value is original:
                setattr(other, key, wrapped)


def main() -> None:
    """Run the step; write the seconds of its parts, of wrapping them, and of all until its end."""
    found, step, *words = sys.argv[1:]
    sys.path.insert(0, str(SCRIPTS))
    module = importlib.import_module(step)
    from iaunet import cli

    spent = Spent()
    spent.seconds[IMPORT] = time.process_time()
    for part, names in PARTS[step].items():
        for name in names:
            replace(name, functools.partial(spent.within, part))
    replace("zarr.core.sync:sync", spent.helped)
    replace("importlib._bootstrap:_find_and_load", functools.partial(spent.within, IMPORT))
    wrapping = time.process_time() - spent.seconds[IMPORT]
    sys.argv = [step, *words]

    def told() -> None:
        module.main()
        parts = {part: spent.seconds[part] for part in (IMPORT, *PARTS[step])}
        facts = {"parts": parts, "wrapping": wrapping, "until_end": time.process_time()}
        Path(found).write_text(json.dumps(facts), encoding="utf-8")

    cli.run(told)


if __name__ == "__main__":
    main()
