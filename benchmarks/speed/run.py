r"""How close every step comes to what the machine can do: ratios, each measured in one run.

Both sides of a ratio take turns in fresh processes with one thread, and the fastest of `--repeats`
counts. Seconds are of the CPU, all threads together, unless a column says otherwise: other
programs on the machine then matter least. What a step imports is not counted.

Example
-------
    python benchmarks/speed/run.py --work /tmp/speed --output docs/benchmarks
"""

import argparse
import importlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "scale"))

import drawn

from iaunet import checksums, cli, machine, synthetic
from iaunet.errors import InputError

log = logging.getLogger("speed")

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "workflow/scripts"
MODELS = {n: REPOSITORY / f"resources/models/nuclei-{n}d.safetensors" for n in (2, 3)}
SHAPES = {2: (8192, 16384), 3: (128, 1024, 1024)}
SEGMENTED = {2: (3072, 3072), 3: (64, 512, 512)}
LABELLED = {2: (12288, 12288), 3: (512, 512, 512)}
OBJECTS_PER_TILE = {2: 100, 3: 60}
SCALED = ((1024, 1024), (2048, 2048), (4096, 4096), (8192, 8192))
SCALED += ((48, 192, 192), (96, 384, 384), (192, 768, 768))
COMPRESSIONS = {"uncompressed": {}, "zstd, tiled": {"compression": "zstd", "tile": (512, 512)}}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
WRITERS = ("ome-zarr", "ngff-zarr")
STEPS = ("tile", "infer", "cluster", "stitch", "measure")
"""Whose time grows with the image; the page of report.py has a size that does not."""
PRECISIONS = ("bfloat16", "int8")
THREADED = ("infer", "cluster")
THREADS = (1, 2)
PARTS = ("tile", "network", "stitch", "scaling", "threads")
ON_GPU = {2: (8192, 8192), 3: (128, 1024, 1024)}
"""What the part `cuda` segments; it is asked for by name, on a machine with a GPU."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for images and stores")
    add("--output", type=Path, required=True, help="folder for the tables, CSV")
    add("--parts", nargs="+", choices=(*PARTS, "cuda"), default=PARTS, help="what to measure")
    add("--repeats", type=int, default=3, help="the fastest counts (default 3)")
    add("--peers", type=Path, help="a Python that has ome-zarr and ngff-zarr")
    add("--one", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def field(shape: Sequence[int]) -> np.ndarray:
    """Return an image of drawn nuclei on a noisy background, uint16; one field, repeated."""
    rng = np.random.default_rng(0)
    tile = {2: (1024, 1024), 3: (64, 512, 512)}[len(shape)]
    drawn, _ = synthetic.draw_nuclei(tile, rng, diameter_px=24)
    counts = [-(-n // m) for n, m in zip(shape, drawn.shape, strict=True)]
    whole = np.tile(drawn, counts)[tuple(slice(0, n) for n in shape)]
    # Noise of its own everywhere: repeated bytes would compress, and be read, too well.
    return (whole + rng.integers(0, 32, shape, dtype=np.uint16)).astype(np.uint16)


def step(name: str, folder: Path, *options: object) -> dict:
    """Run a step in a process of its own; return its record, with seconds of the work alone."""
    record = folder / f"{name}-record.json"
    command = [sys.executable, SCRIPTS / f"{name}.py", *options, "--record", record]
    environment = os.environ | ONE_THREAD
    subprocess.run([str(w) for w in command], check=True, env=environment, capture_output=True)
    return json.loads(record.read_text())


def alone(what: str, *words: object) -> dict:
    """Do a part of this script in a process of its own; return what it prints, JSON."""
    command = [sys.executable, __file__, "--work", ".", "--output", ".", "--one", what, *words]
    return said(command)


def said(command: Sequence[object]) -> dict:
    """Run a command with one thread; return what it prints, JSON."""
    environment = os.environ | ONE_THREAD
    done = subprocess.run(
        [str(w) for w in command], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def fastest(runs: Sequence[dict], key: str = "seconds") -> dict:
    """Return the run that took least."""
    return min(runs, key=lambda run: run[key])


def timed(work: Callable[[], object]) -> dict:
    """Return seconds of the CPU and of the clock, and the peak of memory.

    Like a step, it begins without memory and keeps what it has been given.
    """
    machine.keep_memory()
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.process_time() - cpu,
        "wall": time.perf_counter() - clock,
        "peak_mb": cli.peak_memory_mb(),
    }


def fresh(path: Path) -> Path:
    """Return a path at which there is nothing."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def tile_options(image: Path, out: Path, ndim: int) -> list[object]:
    """Return the options of tile.py."""
    return [
        "--image", image, "--name", "x", "--model", MODELS[ndim], "--core-px", "auto",
        "--halo", "exact", "--batches", 1, "--percentiles", 1, 99.8, "--diameter-px", "native",
        "--output", fresh(out / "image.zarr"), "--tiles", out / "tiles.json",
    ]  # fmt: skip


def one_ours(image: str, out: str, ndim: str) -> dict:
    """Time tile.py, everything that it does."""
    import tile

    small = np.tile(np.eye(64, dtype=np.uint16), (16,) * (int(ndim) - 2) + (1, 1))
    folder = Path(out) / "small"
    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / "image.tif", small, metadata={"axes": "zyx"[-small.ndim :].upper()})
    runs = [(folder / "image.tif", folder), (Path(image), Path(out))]
    rehearsal, words = ([str(w) for w in tile_options(*one, small.ndim)] for one in runs)
    tile.main(rehearsal)  # numba imports what it needs when the first kernel is called
    return timed(lambda: tile.main(words))


def one_copy(image: str, out: str, _: str) -> dict:
    """Time tifffile reading the file and zarr writing the chunks of our level 0."""
    import zarr

    from iaunet import chunks, omezarr

    zarr.config.set(chunks.ZARRS_OWN)
    model = omezarr.open_level(Path(out) / "image.zarr")
    path = fresh(Path(out) / "copy.zarr")

    def copy() -> None:
        values = tifffile.imread(image)
        array = zarr.create_array(
            path, shape=model.shape, dtype=model.dtype, chunks=model.chunks,
            shards=model.shards, compressors=model.compressors,
        )  # fmt: skip
        for box in omezarr.shard_boxes(array):
            array[box] = values[box]

    return timed(copy)


def one_codec(image: str, out: str, _: str) -> dict:
    """Time the compression of our chunks alone, in memory; and what else nobody can leave out.

    `least`: the file decoded, its checksum, and the chunks of all levels compressed, one after
    the other, all in memory, nothing read, written, counted or averaged.
    """
    import hashlib

    from numcodecs import Blosc, blosc

    from iaunet import grid, omezarr

    blosc.use_threads = False
    codec = Blosc(cname="lz4", clevel=5, shuffle=Blosc.BITSHUFFLE)

    def compressed(parts: Sequence[np.ndarray]) -> None:
        for part in parts:
            codec.encode(part)

    levels = []
    for level in range(len(omezarr.read_meta(Path(out) / "image.zarr").levels)):
        array = omezarr.open_level(Path(out) / "image.zarr", level)
        tiles = grid.tiles(array.shape, array.chunks)
        levels.append([array[tile.core] for tile in tiles])
    content = Path(image).read_bytes()
    with tifffile.TiffFile(image) as file:
        page = file.pages.first
        packed = [
            (content[start : start + n], index, one)
            for one in (file.pages if page.compression != 1 else [])
            for index, (start, n) in enumerate(
                zip(one.dataoffsets, one.databytecounts, strict=True)
            )
        ]
        compressed(levels[0][:8])  # the codec finds its memory
        found = timed(lambda: compressed(levels[0]))
        coarse = timed(lambda: [compressed(parts) for parts in levels[1:]])
        checksum = timed(lambda: hashlib.sha256(content).hexdigest())

        def decode() -> None:
            for data, index, one in packed:
                one.decode(data, index)

        decoding = timed(decode)
    parts = (found, coarse, checksum, decoding)
    return found | {
        "decode": decoding["seconds"],
        "least": sum(part["seconds"] for part in parts),
    }


def one_stitched(folder: str, _: str) -> dict:
    """Time stitch.py, everything that it does."""
    import stitch

    words = json.loads((Path(folder) / "stitch.json").read_text())
    return timed(lambda: stitch.main(words))


def one_relabelled(folder: str, _: str) -> dict:
    """Time zarr reading the labels of all batches and writing the chunks of our level 0."""
    import zarr

    from iaunet import chunks, grid, omezarr

    zarr.config.set(chunks.ZARRS_OWN)
    tiles = json.loads((Path(folder) / "tiles.json").read_text())
    final = omezarr.open_labels(Path(folder) / "drawn.ome.zarr")
    copy = zarr.create_array(
        fresh(Path(folder) / "copy.zarr"), shape=final.shape, dtype=final.dtype,
        chunks=final.chunks, shards=final.shards, compressors=final.compressors,
    )  # fmt: skip

    def read() -> None:
        for batch, run in enumerate(tiles["batches"]):
            labels = zarr.open_array(Path(folder) / f"labels/{batch}.zarr/labels", mode="r")
            for index in range(*run):
                labels[grid.tile(final.shape, tiles["core"], index).core]

    found = timed(read)
    for box in omezarr.shard_boxes(final):
        values = final[box]
        found["seconds"] += timed(lambda box=box, values=values: copy.__setitem__(box, values))[
            "seconds"
        ]
    return found


def one_bare(store: str, which: str, ndim: str, precision: str, where: str = "cpu") -> dict:
    """Time the network on tensors in memory: the windows of an image as infer.py computes them.

    Or, where `which` is "blocks", as if no block needed a halo. Like infer.py it begins without
    the memory that it will keep; on a GPU, though, it computes everything once before.
    """
    import torch

    from iaunet import backends, checkpoint, grid, omezarr, predict

    machine.keep_memory()
    torch.set_num_threads(1)
    net, meta = checkpoint.load(MODELS[int(ndim)])
    device = torch.device(where)
    engine = backends.prepare(net, "auto", precision, device, 1)
    shape = omezarr.open_level(Path(store) / "image.zarr").shape
    tiles = json.loads((Path(store) / "tiles.json").read_text())
    padded = [-(-n // s) * s for n, s in zip(shape, net.stride, strict=True)]
    blocks = [tile.core for tile in grid.tiles(padded, meta["block"])]
    halo = [0] * len(padded) if which == "blocks" else tiles["halo"]
    windows = [grid.grow(block, halo, padded) for block in blocks]
    made = [
        predict.laid_out(torch.rand(1, 1, *grid.box_shape(window), device=device))
        for window in windows
    ]
    inner = [grid.shift(a, grid.origin(b)) for a, b in zip(blocks, windows, strict=True)]

    def compute() -> None:
        for x, box in zip(made, inner, strict=True):
            engine.inside(x, box)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        if device.type == "cuda":
            compute()
        return timed(compute)


def one_again(name: str, words: str) -> dict:
    """Do a step twice in this process; return the record of the second time, when a GPU is awake.

    With the seconds of the clock, and when it began.
    """
    words = json.loads(words)
    for _ in range(2):
        began = time.time()
        importlib.import_module(name).main(words)
        wall = time.time() - began
    record = json.loads(Path(words[words.index("--record") + 1]).read_text())
    return record | {"began": began, "wall": wall}


ONE: dict[str, Callable[..., dict]] = {
    "ours": one_ours,
    "copy": one_copy,
    "codec": one_codec,
    "stitched": one_stitched,
    "relabelled": one_relabelled,
    "bare": one_bare,
    "again": one_again,
}


def measure_tile(args: argparse.Namespace) -> pd.DataFrame:
    """Return tile.py beside a copy, the codec alone, and what others need."""
    rows = []
    for ndim, shape in SHAPES.items():
        values = field(shape)
        for name, how in COMPRESSIONS.items():
            folder = args.work / f"tile-{ndim}"
            folder.mkdir(parents=True, exist_ok=True)
            image = folder / "image.tif"
            tifffile.imwrite(image, values, metadata={"axes": "zyx"[-ndim:].upper()}, **how)
            who = ["ours", "copy", "codec", *(WRITERS if args.peers else [])]
            found: dict[str, list[dict]] = {one: [] for one in who}
            for _ in range(args.repeats):
                for one in who:
                    if one in WRITERS:
                        command = [args.peers, Path(__file__).with_name("writers.py"), one]
                        found[one].append(said([*command, image, folder / one]))
                    else:
                        found[one].append(alone(one, image, folder, ndim))
            best = {one: fastest(runs) for one, runs in found.items()}
            row = {"image": f"{ndim}D, {values.nbytes / 1e6:.0f} MB, {name}"}
            row |= {f"{one}_s": round(run["seconds"], 2) for one, run in best.items()}
            ours, codec = best["ours"]["seconds"], best["codec"]
            row["of_a_copy"] = round(ours / best["copy"]["seconds"], 2)
            row["of_the_codec_rate"] = round(codec["seconds"] / ours, 2)
            row["with_decoding"] = round((codec["seconds"] + codec["decode"]) / ours, 2)
            row["least_of_ours"] = round(codec["least"] / ours, 2)
            row["peak_mb"] = round(max(run["peak_mb"] for run in found["ours"]))
            rows.append(row)
            log.info("%s", row)
    return pd.DataFrame(rows)


def commands(
    folder: Path, ndim: int, image: np.ndarray, precision: str = "auto", device: str = "cpu"
) -> dict[str, list[object]]:
    """Write an image into an empty folder; return the options of all steps, one batch."""
    fresh(folder).mkdir(parents=True)
    tifffile.imwrite(folder / "image.tif", image, metadata={"axes": "zyx"[-ndim:].upper()})
    tiles = ["--tiles", folder / "tiles.json"]
    model = [*tiles, "--model", MODELS[ndim]]
    made = {"labels": "l.zarr", "tables": "t.parquet", "sightings": "s.parquet"}
    made = {name: folder / path for name, path in (made | {"contacts": "c.parquet"}).items()}
    lists = [word for name, path in made.items() for word in (f"--{name}", path)]
    out = {"identities": folder / "ids.parquet", "seams": folder / "seams.csv"}
    outs = [word for name, path in out.items() for word in (f"--{name}", path)]
    facts = ["--metrics", folder / "metrics.json", "--provenance", folder / "provenance.json"]
    return {
        "tile": tile_options(folder / "image.tif", folder, ndim),
        "infer": [
            *model, "--store", folder / "image.zarr", "--batch", 0, "--device", device,
            "--backend", "auto", "--precision", precision, "--threads", 1,
            "--output", folder / "0.zarr",
        ],
        "cluster": [
            *model, "--outputs", folder / "0.zarr", "--batch", 0, "--output", made["labels"],
            "--table", made["tables"], "--sightings", made["sightings"],
            "--contacts", made["contacts"], "--device", device,
        ],
        "stitch": [
            "--store", folder / "image.zarr", *tiles, *lists, "--output", folder / "x.ome.zarr",
            *outs,
        ],
        "measure": [
            "--store", folder / "x.ome.zarr", *tiles, *outs, "--output-csv", folder / "o.csv",
            "--output-parquet", folder / "o.parquet", *facts,
        ],
        "report": [
            "--store", folder / "x.ome.zarr", *tiles, "--objects", folder / "o.parquet", *facts,
            "--seams", out["seams"], "--output", folder / "report.html",
        ],
    }  # fmt: skip


def chain(folder: Path, ndim: int, image: np.ndarray, precision: str = "auto") -> dict[str, dict]:
    """Segment an image as one batch; return the records of the steps."""
    options = commands(folder, ndim, image, precision)
    return {name: step(name, folder, *options[name]) for name in STEPS}


def imports() -> dict[str, float]:
    """Return the CPU seconds that every step needs before it begins."""
    found = {}
    for name in STEPS:
        before = os.times()
        command = [sys.executable, SCRIPTS / f"{name}.py", "--help"]
        subprocess.run(command, check=True, env=os.environ | ONE_THREAD, capture_output=True)
        after = os.times()
        spent = after.children_user + after.children_system
        found[name] = spent - before.children_user - before.children_system
    return found


def measure_network(args: argparse.Namespace) -> pd.DataFrame:
    """Return infer.py beside the bare network, cluster.py beside both, and bytes per voxel."""
    rows = [
        measure_precision(args, ndim, precision) for ndim in SEGMENTED for precision in PRECISIONS
    ]
    return pd.DataFrame(rows)


def measure_precision(args: argparse.Namespace, ndim: int, precision: str) -> dict[str, object]:
    """Return a row of `measure_network`."""
    shape = SEGMENTED[ndim]
    folder = args.work / f"network-{ndim}"
    image = field(shape)
    runs: list[dict] = []
    bare: list[dict] = []
    blocks: list[dict] = []
    for _ in range(args.repeats):
        runs.append(chain(folder, ndim, image, precision))
        bare.append(alone("bare", folder, "windows", ndim, precision))
        blocks.append(alone("bare", folder, "blocks", ndim, precision))
    infer = fastest([run["infer"] for run in runs], "network_cpu_seconds")
    network = fastest(bare)
    without_halo = fastest(blocks)["seconds"]
    rates = [
        infer["voxels"] / seconds / 1e6
        for seconds in (network["seconds"], infer["network_cpu_seconds"])
    ]
    clustering = min(run["cluster"]["clustering_seconds"] for run in runs)
    row = {
        "image": f"{ndim}D, {' x '.join(map(str, shape))}",
        "precision": infer["precision"],
        "network_mvox_s": round(rates[0], 3),
        "infer_mvox_s": round(rates[1], 3),
        "of_the_network": round(rates[1] / rates[0], 3),
        "of_it_without_halo": round(without_halo / infer["network_cpu_seconds"], 3),
        "of_the_network_by_the_clock": round(
            min(run["wall"] for run in bare) / min(run["infer"]["network_seconds"] for run in runs),
            3,
        ),
        "cluster_s": round(clustering, 2),
        "cluster_of_network": round(clustering / network["seconds"], 3),
        "objects": runs[0]["cluster"]["n_objects"],
        "output_bytes_per_voxel": round(infer["output_bytes"] / infer["voxels"], 2),
        "peak_mb": round(infer["peak_memory_mb"]),
    }
    log.info("%s", row)
    return row


def measure_stitch(args: argparse.Namespace) -> pd.DataFrame:
    """Return stitch.py beside zarr reading and writing the same labels."""
    rows = []
    for ndim, shape in LABELLED.items():
        folder = fresh(args.work / f"stitch-{ndim}")
        model = {"name": MODELS[ndim].stem, "sha256": checksums.sha256(MODELS[ndim])}
        n_batches = drawn.write(folder, shape, OBJECTS_PER_TILE[ndim], model)
        options = drawn.options(folder, MODELS[ndim], n_batches)
        for words in options["cluster"]:
            step("cluster", folder, *words)
        words = [str(word) for word in options["stitch"][0]]
        (folder / "stitch.json").write_text(json.dumps(words))
        runs: dict[str, list[dict]] = {"stitched": [], "relabelled": []}
        for _ in range(args.repeats):
            for one, found in runs.items():
                found.append(alone(one, folder, ndim))
        best = {one: fastest(found) for one, found in runs.items()}
        ours, copy = (best[one]["seconds"] for one in ("stitched", "relabelled"))
        rows.append(
            {
                "image": f"{ndim}D, {' x '.join(map(str, shape))}",
                "ours_s": round(ours, 2),
                "copy_s": round(copy, 2),
                "of_a_copy": round(ours / copy, 2),
                "peak_mb": round(best["stitched"]["peak_mb"]),
            }
        )
        log.info("%s", rows[-1])
    return pd.DataFrame(rows)


def measure_scaling(args: argparse.Namespace) -> pd.DataFrame:
    """Return CPU seconds per million voxels of every step, for images of several sizes."""
    start, rows = imports(), []
    for shape in SCALED:
        found = chain(fresh(args.work / "scaling"), len(shape), field(shape))
        n, first = math.prod(shape), next(one for one in SCALED if len(one) == len(shape))
        row: dict[str, object] = {
            "voxels": " x ".join(map(str, shape)),
            "times": n // math.prod(first),
        }
        for name, record in found.items():
            row[f"{name}_s_per_mvoxel"] = round((record["cpu_seconds"] - start[name]) / n * 1e6, 3)
        row["peak_mb"] = round(max(record["peak_memory_mb"] for record in found.values()))
        rows.append(row)
        log.info("%s", row)
    return pd.DataFrame(rows)


def measure_threads(args: argparse.Namespace) -> pd.DataFrame:
    """Return seconds of the clock and of the CPU of the steps that take threads."""
    start, rows = imports(), []
    for ndim, shape in SEGMENTED.items():
        folder = args.work / f"threads-{ndim}"
        options = commands(folder, ndim, field(shape))
        for name in STEPS[: 1 + max(map(STEPS.index, THREADED))]:
            step(name, folder, *options[name])
        for name in THREADED:
            runs: dict[int, list[dict]] = {threads: [] for threads in THREADS}
            for _ in range(args.repeats):
                for threads, found in runs.items():
                    found.append(step(name, folder, *options[name], "--threads", threads))
            best = {threads: fastest(found) for threads, found in runs.items()}
            for threads, run in best.items():
                rows.append(
                    {
                        "image": f"{ndim}D, {' x '.join(map(str, shape))}",
                        "step": name,
                        "threads": threads,
                        "clock_s": round(run["seconds"], 2),
                        "cpu_s": round(run["cpu_seconds"] - start[name], 2),
                        "times_as_fast": round(best[THREADS[0]]["seconds"] / run["seconds"], 2),
                    }
                )
                log.info("%s", rows[-1])
    return pd.DataFrame(rows)


def watched(work: Callable[[], dict]) -> dict:
    """Return what `one_again` does, with the share of its time in which the GPU was busy."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "-lms", "50"]
    command.append("--format=csv,noheader,nounits")
    seen: list[tuple[float, float]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        note = threading.Thread(
            target=lambda: seen.extend((time.time(), float(line)) for line in watch.stdout)
        )
        note.start()
        found = work()
        watch.terminate()
        note.join()
    end = found["began"] + found["wall"]
    during = [percent / 100 for at, percent in seen if found["began"] <= at <= end]
    return found | {"busy": np.mean(during) if during else np.nan}


def measure_cuda(args: argparse.Namespace) -> pd.DataFrame:
    """Return infer.py and cluster.py on a GPU beside the bare network there, by the clock."""
    import torch

    if not torch.cuda.is_available():
        raise InputError("--parts cuda: PyTorch finds no GPU here; this part measures one")
    rows = []
    for ndim, shape in ON_GPU.items():
        folder = args.work / f"cuda-{ndim}"
        options = commands(folder, ndim, field(shape), device="cuda")
        step("tile", folder, *options["tile"])
        words = {
            name: json.dumps([str(w) for w in (*options[name], "--record", folder / "r.json")])
            for name in ("infer", "cluster")
        }
        found: dict[str, list[dict]] = {"infer": [], "cluster": [], "bare": []}
        for _ in range(args.repeats):
            found["infer"].append(watched(partial(alone, "again", "infer", words["infer"])))
            found["cluster"].append(alone("again", "cluster", words["cluster"]))
            found["bare"].append(alone("bare", folder, "windows", ndim, "auto", "cuda"))
        infer = fastest(found["infer"], "network_seconds")
        cluster, bare = (fastest(found[name], "wall")["wall"] for name in ("cluster", "bare"))
        row = {
            "image": f"{ndim}D, {' x '.join(map(str, shape))}",
            "gpu": infer["device_name"],
            "precision": infer["precision"],
            "network_mvox_s": round(infer["voxels"] / bare / 1e6, 1),
            "infer_mvox_s": round(infer["voxels"] / infer["network_seconds"] / 1e6, 1),
            "of_the_network": round(bare / infer["network_seconds"], 3),
            "gpu_busy": round(infer["busy"], 3),
            "cluster_s": round(cluster, 2),
            "cluster_of_network": round(cluster / bare, 3),
        }
        rows.append(row)
        log.info("%s", row)
    return pd.DataFrame(rows)


MEASURE = {
    "tile": measure_tile,
    "network": measure_network,
    "stitch": measure_stitch,
    "scaling": measure_scaling,
    "threads": measure_threads,
    "cuda": measure_cuda,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts and write a table of each."""
    args = parse_args(argv)
    if args.one:
        name, *words = args.one
        print(json.dumps(ONE[name](*words)))  # noqa: T201
        return
    args.output.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        table = MEASURE[part](args)
        with cli.write_whole(args.output / f"{part}.csv") as partial:
            table.to_csv(partial, index=False)


if __name__ == "__main__":
    cli.run(main)
