r"""What many small images cost beyond their work: the plan of 1,000, and a real run of some.

Images are drawn once and then hard-linked under names of their own. `--plan` images are planned
twice with `snakemake --dry-run`: with nothing known, and with the plan kept from before. `--run`
images are segmented. Per image are told: what the run took beyond the CPU seconds that the steps
themselves record; what the steps take in one process that has done an image before; files left.

Example
-------
    python benchmarks/load/load.py --plan 1000 --run 30 --work WORK --output load.json
"""

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

from iaunet import cli, synthetic
from iaunet.errors import InputError

log = logging.getLogger("load")

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = (256, 256)
MOST_ALONE = 50
"""Images of which the bare work is measured."""
LEFT = ("results", "logs", "benchmarks", ".snakemake")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--plan", type=int, required=True, help="images of the dry run; 0: none")
    parser.add_argument("--run", type=int, required=True, help="images of the real run; 0: none")
    parser.add_argument("--cores", type=int, default=1, help="of the real run")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--output", type=Path, help="JSON to write")
    return parser.parse_args(argv)


def write_run(folder: Path, n_images: int) -> None:
    """Write a table of so many images, of which ten differ."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(n_images):
        path = folder / f"images/{index}.tif"
        if index < 10:
            image, _ = synthetic.draw_nuclei(SHAPE, rng, diameter_px=22)
            tifffile.imwrite(path, image)
        else:
            os.link(folder / f"images/{index % 10}.tif", path)
    rows = "".join(f"image-{index},images/{index}.tif\n" for index in range(n_images))
    (folder / "images.csv").write_text(f"image,path\n{rows}")
    (folder / "config.yaml").write_text("images: images.csv\ndiameter_px: native\n")


def snakemake(folder: Path, *options: str) -> dict[str, float]:
    """Run Snakemake; return seconds, CPU seconds and the largest sum of resident sizes, MB."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    with (folder / "log.txt").open("w") as file:
        process = subprocess.Popen(
            [*command, "--directory", str(folder), *options], stdout=file, stderr=file
        )
        peak: list[float] = [0.0]
        watcher = threading.Thread(target=watch, args=(process, peak))
        watcher.start()
        status = process.wait()
        watcher.join()
    if status != 0:
        raise InputError(f"{folder}: Snakemake failed: {(folder / 'log.txt').read_text()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(peak[0]),
    }


def watch(process: subprocess.Popen, peak: list[float]) -> None:
    """Note the largest sum of resident sizes of a process and all below it, MB."""
    while process.poll() is None:
        try:
            family = psutil.Process(process.pid)
            sizes = [one.memory_info().rss for one in (family, *family.children(recursive=True))]
            peak[0] = max(peak[0], sum(sizes) / 2**20)
        except psutil.Error:
            pass
        time.sleep(0.1)


def recorded(folder: Path) -> dict[str, float]:
    """Return the CPU seconds of all steps of a run, by step, as they record them."""
    found: Counter[str] = Counter()
    for path in sorted((folder / "results").glob("*/provenance.json")):
        for step in json.loads(path.read_text())["steps"]:
            found[step["step"]] += step["cpu_seconds"]
    return {name: round(seconds, 1) for name, seconds in found.items()}


def pure(folder: Path, n_images: int) -> float:
    """Return CPU seconds per image of all steps in one process, without its first image.

    What the work takes when nothing is started, imported or compiled for it: the commands of the
    rules, with all that they write.
    """
    import cluster
    import infer
    import measure
    import report
    import stitch
    import tile

    model = REPOSITORY / "resources/models/nuclei-2d.safetensors"
    times = []
    for index in range(n_images + 1):
        out = folder / f"pure-{index}"
        out.mkdir()
        tiles, store, made = out / "tiles.json", out / "image.zarr", out / "x.ome.zarr"
        names = ("tile", "infer", "cluster", "stitch")
        records = {name: out / f"{name}.json" for name in names}
        lists = ["--labels", out / "l.zarr", "--tables", out / "t", "--sightings", out / "s"]
        lists += ["--contacts", out / "c"]
        found = ["--identities", out / "ids", "--seams", out / "seams.csv"]
        told = ["--metrics", out / "metrics.json", "--provenance", out / "provenance.json"]
        objects = ["--output-csv", out / "o.csv", "--output-parquet", out / "o.parquet"]
        commands = {
            tile: [
                "--image", folder / f"images/{index}.tif", "--name", "x", "--model", model,
                "--core-px", "auto", "--halo", "exact", "--batches", 1, "--percentiles", 1, 99.8,
                "--diameter-px", "native", "--output", store, "--tiles", tiles,
                "--record", records["tile"],
            ],
            infer: [
                "--store", store, "--tiles", tiles, "--model", model, "--batch", 0, "--device",
                "cpu", "--backend", "auto", "--threads", 1, "--output", out / "0.zarr",
                "--record", records["infer"],
            ],
            cluster: [
                "--tiles", tiles, "--model", model, "--outputs", out / "0.zarr", "--batch", 0,
                "--output", out / "l.zarr", "--table", out / "t", "--sightings", out / "s",
                "--contacts", out / "c", "--record", records["cluster"],
            ],
            stitch: [
                "--store", store, "--tiles", tiles, *lists, "--output", made, *found,
                "--record", records["stitch"],
            ],
            measure: [
                "--store", made, "--tiles", tiles, *found, *objects, *told,
                "--records", *records.values(), "--config", "{}",
            ],
            report: [
                "--store", made, "--objects", out / "o.parquet", "--seams", out / "seams.csv",
                "--tiles", tiles, *told, "--output", out / "report.html",
                "--complete", out / "complete.json",
            ],
        }  # fmt: skip
        began = time.process_time()
        for step, words in commands.items():
            step.main([str(word) for word in words])
        times.append(time.process_time() - began)
    return sum(times[1:]) / n_images


def files_left(folder: Path, n_images: int) -> dict[str, float]:
    """Return how many files a run left per image, by folder."""
    count = {
        name: sum(path.is_file() for path in (folder / name).rglob("*")) / n_images for name in LEFT
    }
    return {name: round(n, 1) for name, n in count.items()} | {"all": round(sum(count.values()), 1)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    args = parse_args(argv)
    found: dict[str, object] = {"shape": SHAPE}
    if args.plan:
        folder = args.work / "plan"
        write_run(folder, args.plan)
        options = ("--cores", "1", "--dry-run", "--quiet")
        found["plan"] = {
            "images": args.plan,
            "first": snakemake(folder, *options),
            "again": snakemake(folder, *options),
        }
        log.info("%s", found["plan"])
    if args.run:
        folder = args.work / "run"
        write_run(folder, args.run)
        cost = snakemake(folder, "--cores", str(args.cores))
        steps = recorded(folder)
        alone = pure(folder, min(args.run - 1, MOST_ALONE))
        found["run"] = {
            "images": args.run,
            "cores": args.cores,
            **cost,
            "cpu_seconds_in_steps": round(sum(steps.values()), 1),
            "cpu_seconds_by_step": steps,
            "cpu_seconds_per_image": round(cost["cpu_seconds"] / args.run, 2),
            "cpu_seconds_pure_per_image": round(alone, 2),
            "cpu_seconds_beside_per_image": round(
                (cost["cpu_seconds"] - sum(steps.values())) / args.run, 2
            ),
            "files_per_image": files_left(folder, args.run),
            "again": snakemake(folder, "--cores", str(args.cores)),
        }
        log.info("%s", found["run"])
    if args.output is not None:
        with cli.write_whole(args.output) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
