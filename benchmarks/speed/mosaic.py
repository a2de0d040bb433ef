r"""One large image from file to labels: ours, and StarDist's `predict_instances_big`.

The images of a table are put side by side until a square is full, with their true labels; both
programs segment it with the same number of threads, one after the other, and are scored against
the same labels.

Example
-------
    python benchmarks/speed/mosaic.py --table table.csv --side 8192 --threads 2 \\
        --stardist MODELS/stardist --peers ~/venv-peers/bin/python \\
        --work WORK --output docs/benchmarks/mosaic.csv
"""

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

log = logging.getLogger("mosaic")

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK_PX, OVERLAP_PX = 2048, 128


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--table", type=Path, help="images and references, as for train.py")
    add("--side", type=int, default=8192, help="of the mosaic, px (default 8192)")
    add("--threads", type=int, default=2, help="of both (default 2)")
    add("--stardist", type=Path, help="folder of a StarDist model; without it ours alone")
    add("--peers", type=Path, help="a Python that has StarDist")
    add("--backends", nargs="+", default=["torch"], help="of ours (default torch)")
    add("--work", type=Path, required=True, help="folder for the image and the runs")
    add("--output", type=Path, help="CSV to write")
    add("--one", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def write_mosaic(args: argparse.Namespace) -> None:
    """Write image.tif and true.tif: validation images in rows, from the first again and again."""
    from iaunet import trainingset

    entries = trainingset.read_table(args.table)
    cases = [entry.read()[:2] for entry in entries if entry.side == "validation"]
    image = np.zeros((args.side, args.side), np.uint16)
    true = np.zeros(image.shape, np.uint32)
    top = left = height = k = 0
    while top < args.side:
        picture, labels = cases[k % len(cases)]
        rows = min(picture.shape[0], args.side - top)
        columns = min(picture.shape[1], args.side - left)
        here = (slice(top, top + rows), slice(left, left + columns))
        image[here] = picture[:rows, :columns]
        part = labels[:rows, :columns].astype(np.uint32)
        true[here] = np.where(part > 0, part + true.max(), 0)
        height, left, k = max(height, rows), left + columns, k + 1
        if left >= args.side:
            top, left, height = top + height, 0, 0
    tifffile.imwrite(args.work / "image.tif", image)
    tifffile.imwrite(args.work / "true.tif", true, compression="zstd")


def star_dist(args: argparse.Namespace) -> None:
    """Segment the mosaic with StarDist, in this process."""
    import tensorflow as tf
    from csbdeep.utils import normalize
    from stardist.models import StarDist2D

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = StarDist2D(None, name=args.stardist.name, basedir=str(args.stardist.parent))
    image = normalize(tifffile.imread(args.work / "image.tif"), 1, 99.8)
    labels, _ = model.predict_instances_big(
        image, axes="YX", block_size=BLOCK_PX, min_overlap=OVERLAP_PX, context=OVERLAP_PX,
        show_progress=False,
    )  # fmt: skip
    tifffile.imwrite(args.work / "stardist.tif", labels.astype(np.uint32), compression="zstd")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    args.one.write_text(json.dumps({"peak_mb": peak}))


def measured(command: Sequence[object], **options: object) -> dict[str, float]:
    """Run a command; return seconds and CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    words = [str(word) for word in command]
    subprocess.run(words, check=True, capture_output=True, **options)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}


def theirs(args: argparse.Namespace) -> dict[str, object]:
    """Segment the mosaic with StarDist, in a process of its Python."""
    noted = args.work / "stardist.json"
    command = [args.peers, __file__, "--stardist", args.stardist, "--work", args.work]
    command += ["--threads", args.threads, "--one", noted]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    found = measured(command, env=environment) | json.loads(noted.read_text())
    return {"who": "StarDist", **found, "labels": args.work / "stardist.tif"}


def ours(args: argparse.Namespace, backend: str) -> dict[str, object]:
    """Segment the mosaic with the workflow, up to the labels."""
    folder = args.work / f"ours-{backend}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "images.csv").write_text("image,path\nmosaic,../image.tif\n")
    (folder / "config.yaml").write_text(
        f"images: images.csv\ndiameter_px: native\nbackend: {backend}\n"
    )
    store = "results/mosaic/mosaic.ome.zarr"
    found = measured(
        [
            sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile",
            "--directory", folder, "--cores", args.threads, "--", store,
        ]
    )  # fmt: skip
    records = sorted((folder / "results/mosaic/steps/records").glob("*.json"))
    peak = max(json.loads(path.read_text())["peak_memory_mb"] for path in records)
    return {"who": f"ours, {backend}", **found, "peak_mb": peak, "labels": folder / store}


def scored(labels: Path, true: Path, work: Path) -> dict[str, float]:
    """Return the scores of labels."""
    out = work / "scores.json"
    command = [sys.executable, SCRIPTS / "evaluate.py", "--predicted", labels]
    command += ["--reference", true, "--output-json", out]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    found = json.loads(out.read_text())
    return {name: round(found[name], 3) for name in ("ap50", "ap_mean")}


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the mosaic with everybody, and write the table."""
    args = parse_args(argv)
    if args.one:
        star_dist(args)
        return
    import pandas as pd

    logging.basicConfig(level=logging.INFO)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "true.tif").exists():
        write_mosaic(args)
    rows = [theirs(args)] if args.stardist else []
    rows += [ours(args, backend) for backend in args.backends]
    for row in rows:
        row |= scored(row.pop("labels"), args.work / "true.tif", args.work)
        log.info("%s", row)
    pd.DataFrame(rows).round(3).to_csv(args.output, index=False)


if __name__ == "__main__":
    main()
