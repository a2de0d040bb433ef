r"""Tell what a run will take before it is started: jobs, memory, disk and hours, image by image.

One tile of an image of every model is segmented first, to know how fast this machine is and how
full the images are. The images and their batches are those of the workflow: `check.py` plans both.

Example
-------
    python plan.py --directory RUN --config RUN/config.yaml --output RUN/results/plan.csv
"""

import argparse
import csv
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from iaunet import checkpoint, cli, cost, images, machine, omezarr
from iaunet.errors import InputError

log = logging.getLogger("plan")

SCRIPTS = Path(__file__).resolve().parent
RUN_JOBS = 2
"""Of the whole run: its page, its crate."""
SHOWN = 30
GIGA = 1e3


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--directory", type=Path, default=Path(), help="folder of the run; default: this one")
    add("--config", type=Path, help="YAML or JSON, over that of the folder; - is standard input")
    add("--output", type=Path, help="CSV to write; default: results/plan.csv of the folder")
    add(
        "--no-calibrate",
        action="store_true",
        help="segment nothing: take the rates that earlier runs in the folder recorded, if any",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print and write the plan of a run."""
    args = parse_args(argv)
    recorder = cli.Recorder("plan", args)
    config = read_config(args)
    output = (args.output or args.directory / "results/plan.csv").absolute()
    if not args.directory.is_dir():
        raise InputError(f"{args.directory}: no such folder; needs the folder of the run")
    os.chdir(args.directory)
    planned = checked(config)
    rates = recorded(planned) if args.no_calibrate else calibrated(planned, config)
    rows = [image_row(name, row, rates[row["model"]]) for name, row in planned.items()]
    with cli.write_whole(output) as partial, partial.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sys.stdout.write(shown(rows, output))
    recorder.write(n_images=len(rows), n_jobs=sum(row["jobs"] for row in rows) + RUN_JOBS)


def read_config(args: argparse.Namespace) -> dict:
    """Return all settings as Snakemake has them: defaults, those of the folder, those given."""
    files = [machine.REPOSITORY / "config.yaml", args.directory / "config.yaml"]
    found: dict = {}
    for path in (*filter(Path.is_file, files), *([args.config] if args.config else [])):
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML: {error}") from None
        if not isinstance(values, dict):
            raise InputError(f"{path}: needs a mapping of keys to values")
        found = merged(found, values)
    return found


def merged(values: Mapping, other: Mapping) -> dict:
    """Return the values with those of the other, section by section."""
    found = dict(values)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def checked(config: Mapping) -> dict[str, dict]:
    """Return the plan of every image; all that is wrong is shown by `check.py` itself."""
    command = [sys.executable, SCRIPTS / "check.py", "--config", "-"]
    command += ["--repository", machine.REPOSITORY]
    text = json.dumps(config, default=str)
    done = subprocess.run(list(map(str, command)), input=text, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError("config or table of images: see above; correct them first")
    found = json.loads(done.stdout)["images"]
    if not found:
        raise InputError("config, images: no table of images; nothing to plan")
    return found


def recorded(planned: Mapping[str, Mapping]) -> dict[str, cost.Rates]:
    """Return the rates of every model, as earlier runs in this folder recorded them."""
    known: dict[str, list[cost.Rates]] = {}
    for name, row in planned.items():
        try:
            text = Path(f"results/{name}/provenance.json").read_text(encoding="utf-8")
            found = json.loads(text)
            same = found["model"]["path"] == row["model"]
            rates = cost.measured(found["steps"], "earlier runs") if same else None
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if rates is not None:
            known.setdefault(row["model"], []).append(rates)
    return {
        row["model"]: cost.middle(known[row["model"]])
        if row["model"] in known
        else cost.RATES[len(row["size"]["shape"])]
        for row in planned.values()
    }


def calibrated(planned: Mapping[str, Mapping], config: Mapping) -> dict[str, cost.Rates]:
    """Return the rates of every model, measured with a part of its largest image."""
    found = {}
    for model in dict.fromkeys(row["model"] for row in planned.values()):
        of_model = {name: row for name, row in planned.items() if row["model"] == model}
        name = max(of_model, key=lambda key: math.prod(of_model[key]["size"]["shape"]))
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            try:
                rates = measured(Path(folder), of_model[name], config)
            except InputError as error:
                log.warning("%s: not calibrated, %s", name, error)
                rates = None
        found[model] = rates or cost.RATES[len(of_model[name]["size"]["shape"])]
        text = "%s: network %.2f, clustering %.2f CPU seconds per million voxels (%s)"
        log.info(text, model, found[model].network, found[model].cluster, found[model].source)
    return found


def measured(folder: Path, row: Mapping, config: Mapping) -> cost.Rates | None:
    """Return the rates of one tile in the middle of an image, from its first three steps."""
    size = cost.Size.from_dict(row["size"])
    crop = folder / "crop.ome.zarr"
    write_crop(crop, row, size.block)
    # Tiles of half a block, so that there are several to cluster.
    stride = checkpoint.read_meta(Path(row["model"]))["stride"]
    core = [max(1, n // 2 // s) * s for n, s in zip(size.block, stride, strict=True)]
    tile = [
        f"--image={crop}", "--name=crop", f"--model={row['model']}",
        "--core-px", *core, "--halo", "exact", "--batches=1",
        "--percentiles", *config["normalize"]["percentiles"],
        f"--diameter-px={row['diameter_px'] or config['diameter_px']}",
        f"--output={folder / 'image.zarr'}",
    ]  # fmt: skip
    infer = [
        f"--store={folder / 'image.zarr'}", f"--model={row['model']}", "--batch=0",
        f"--device={config['device']}", f"--backend={config['backend']}",
        f"--precision={config['precision']}", "--threads=1", f"--output={folder / '0.zarr'}",
    ]  # fmt: skip
    settings = [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in config["clustering"].items()
    ]
    cluster = [
        f"--model={row['model']}", "--outputs", folder / "0.zarr", "--batch=0",
        "--set", *settings, f"--output={folder / 'labels.zarr'}",
        *(f"--{name}={folder / name}.parquet" for name in ("table", "sightings", "contacts")),
    ]  # fmt: skip
    steps = {"tile": tile, "infer": infer, "cluster": cluster}
    return cost.measured([step(name, words, folder) for name, words in steps.items()], "one tile")


def write_crop(path: Path, row: Mapping, block: Sequence[int]) -> None:
    """Write the middle of an image, as large as a block, as an image of its own."""
    choice = {key: row[key] or None for key in ("channel", "scene", "frame")}
    image = images.open_image(row["path"], **choice)
    box = tuple(
        slice(max(0, (n - side) // 2), min(n, max(0, (n - side) // 2) + side))
        for n, side in zip(image.shape, block, strict=True)
    )
    values = image.read(box)
    um = {axis: row[f"pixel_um_{axis}"] for axis in image.axes}
    known = [float(um[a]) if um[a] else image.partial_pixel_um.get(a) for a in image.axes]
    pixel_um = None if None in known else known
    omezarr.create_image(path, values.shape, image.axes, values.dtype, pixel_um, "crop", {})
    array = omezarr.open_level(path, mode="r+")
    omezarr.write_box(array, tuple(slice(0, n) for n in values.shape), values)
    omezarr.write_pyramid(path)


def step(name: str, words: Sequence[object], folder: Path) -> dict:
    """Run a step with one thread; return its record."""
    record = folder / f"{name}.json"
    command = [sys.executable, SCRIPTS / f"{name}.py", *words]
    command += ["--tiles", folder / "tiles.json", "--record", record]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"{name}.py: {said[-1].removeprefix('error: ')}")
    return json.loads(record.read_text())


def image_row(name: str, row: Mapping, rates: cost.Rates) -> dict[str, object]:
    """Return what an image will take."""
    planned = cost.Size.from_dict(row["size"])
    size = cost.on_grid(planned, rates)
    steps = cost.steps_of(size)
    seconds = {one: cost.cpu_seconds(one, size, rates=rates) for one in steps}
    temporary, final = cost.disk_mb(size, rates=rates)
    return {
        "image": name,
        "model": Path(row["model"]).stem,
        "shape": "x".join(map(str, size.shape)),
        "network_grid": "x".join(map(str, size.grid_shape)),
        "tiles": size.n_tiles,
        "batches": size.n_batches,
        "jobs": sum(cost.n_jobs(one, size) for one in steps),
        "core_hours": round(sum(seconds.values()) / 3600, 5),
        "temporary_mb": round(temporary, 1),
        "final_mb": round(final, 1),
        **{
            f"peak_mb_{one}": round(cost.peak_mb(one, size, rates=rates)) if one in steps else ""
            for one in cost.STEPS
        },
        "rates": rates.source,
    }


def shown(rows: Sequence[Mapping], output: Path) -> str:
    """Return the plan for a reader."""
    head = ("image", "shape", "tiles", "batches", "jobs", "peak_mb", "temporary_mb", "final_mb")
    lines = [(*head, "core_hours")]
    for row in rows[:SHOWN]:
        peak = max(row[f"peak_mb_{one}"] or 0 for one in cost.STEPS)
        facts = {**row, "peak_mb": peak, "core_hours": f"{row['core_hours']:.3f}"}
        lines.append(tuple(str(facts[name]) for name in lines[0]))
    wide = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = "\n".join(
        "  ".join([line[0].ljust(wide[0]), *map(str.rjust, line[1:], wide[1:])]) for line in lines
    )
    if len(rows) > SHOWN:
        text += f"\n... and {len(rows) - SHOWN} images more, see {output}"
    peaks = ", ".join(
        f"{one} {max(row[f'peak_mb_{one}'] or 0 for row in rows)}"
        for one in cost.STEPS
        if any(row[f"peak_mb_{one}"] for row in rows)
    )
    total = {name: sum(row[name] for row in rows) for name in (*head[2:5], *head[6:], "core_hours")}
    return (
        f"{text}\n\n{len(rows)} images, {total['tiles']} tiles, {total['batches']} batches, "
        f"{total['jobs'] + RUN_JOBS} jobs\n"
        f"peak memory of a job, MB: {peaks}\n"
        f"disk: {total['final_mb'] / GIGA:.2f} GB in the end; while an image is worked on up to "
        f"{max(row['temporary_mb'] for row in rows) / GIGA:.2f} GB more for it\n"
        f"time: {total['core_hours']:.2f} hours of one core, or of one graphics card\n"
        f"{output}\n"
    )


if __name__ == "__main__":
    cli.run(main)
