"""Check config and table of images before any job runs, and plan the jobs.

All problems are shown at once, one line each. The plan (JSON, standard output) says for every
image where its files lie, which model it takes and how many batches it is split into.

Example
-------
    python check.py --config config.json --repository ~/iaunet-workflow > plan.json
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from iaunet import checkpoint, cli, cost, grid, images, plan, scale, tables
from iaunet.errors import InputError, one_line
from iaunet.schema import Schema, near_files, shown, unknown

RESERVED = ("summary.csv", "summary.html", "plan.csv", "training", "ablation", "ro-crate")
RESERVED += ("ro-crate-metadata.json",)
ALL = "all"
"""Stands in the columns scene and frame for one row of each."""
PIXEL_UM = ("pixel_um_z", "pixel_um_y", "pixel_um_x")
FOREIGN = (".pt", ".pth", ".zip")
"""What other programs call their models; the sentence on them says what to do."""
MOST_UNKNOWN = 20
"""Unknown columns that are named."""
MOST_HINTS = 20
"""Problems of a run for whose missing files the nearest name is looked for, which takes time."""
BESIDE = ("zarr.json", ".zattrs", ".zgroup")

Row = Mapping[str, str]


def inside(path: Path) -> list[Path]:
    """Return the files that say what an OME-Zarr holds."""
    return [path / name for name in BESIDE]


class Run:
    """One run: its problems, and what was learnt about models and files on the way."""

    def __init__(self, config: Mapping, repository: Path) -> None:
        self.config = config
        self.repository = repository
        self.problems: list[str] = []
        self.watched: dict[str, list[int]] = {}
        self.models: dict[tuple[str, Path], tuple[str, dict] | str] = {}
        self.expanded: dict[str, list[str]] = {}

    def schema(self, name: str) -> Schema:
        """Return the schema of that name."""
        return Schema(self.repository / "workflow/schemas" / f"{name}.schema.yaml")

    def watch(self, path: Path) -> bool:
        """Remember a file's time and size; False when there is no such file or folder."""
        try:
            facts = path.stat()
        except (OSError, ValueError):  # a name may be too long, or hold a zero byte
            return False
        self.watched[str(path)] = [facts.st_mtime_ns, facts.st_size]
        for near in inside(path) if path.is_dir() else ():
            self.watch(near)
        return True

    def model(self, text: str, beside: Path) -> tuple[str, dict]:
        """Return path and metadata of a model; a bad one raises the same error each time."""
        if (text, beside) not in self.models:
            try:
                self.models[text, beside] = self._model(text, beside)
            except InputError as error:
                self.models[text, beside] = str(error)
            except (OSError, ValueError) as error:
                self.models[text, beside] = f"{shown(text)}: not a usable path ({error})"
        found = self.models[text, beside]
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _model(self, text: str, beside: Path) -> tuple[str, dict]:
        near = beside / text
        is_path = "/" in text or Path(text).suffix in (checkpoint.SUFFIX, *FOREIGN)
        shipped = Path(os.path.relpath(self.repository / "resources/models"))
        path = near if is_path and near.exists() else checkpoint.resolve(text, shipped)
        self.watch(path)
        return str(path), checkpoint.read_meta(path)


PLANNED = ("tiling", "clustering", "stitching")
"""Sections of the config that the plan rests on."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.base_parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON; - is standard input")
    parser.add_argument(
        "--repository", type=Path, required=True, help="folder with the models and schemas"
    )
    return parser.parse_args(argv)


def check_config(run: Run) -> bool:
    """Note the problems of the config; True when images can be planned with it."""
    problems = list(run.schema("config").problems(run.config))
    run.problems += [f"config, {key}: {text}" for key, text in problems]
    bad = {key for key, _ in problems}

    def good(key: str) -> bool:
        """Tell whether a key and its section are there and have no problem."""
        section = key.partition(".")[0]
        return section in run.config and not bad & {key, section}

    if good("normalize.percentiles"):
        low, high = run.config["normalize"]["percentiles"]
        if not low < high:
            run.problems.append(
                f"config, normalize.percentiles: found {[low, high]}; needs low < high"
            )
    for section in ("training", "ablation"):
        if good(f"{section}.table"):
            table = run.config[section]["table"]
            if table is not None and not run.watch(Path(table)):
                run.problems.append(
                    f"config, {section}.table: no such file {shown(table)}; correct the path"
                )
    if good("training.start") and run.config["training"]["start"] is not None:
        try:
            run.model(run.config["training"]["start"], Path())
        except InputError as error:
            run.problems.append(f"config, training.start: {error}")
    return not any(key.partition(".")[0] in PLANNED for key in bad)


def find_table(run: Run) -> Path | None:
    """Return the table: of the working directory, else the demo's beside the Snakefile."""
    text = run.config.get("images")
    if not isinstance(text, str) or not text:
        return None
    default = yaml.safe_load((run.repository / "config.yaml").read_text(encoding="utf-8"))["images"]
    shipped = run.repository / default
    if text == default and not Path(text).exists() and shipped.is_file():
        return Path(os.path.relpath(shipped))
    return Path(text)


def check_table(run: Run, path: Path, can_plan: bool) -> dict[str, dict]:
    """Note the problems of the table; return the plan of every image that has none."""
    if not run.watch(path):
        run.problems.append(
            f"config, images: {path}: no such file{near_files(path)}; needs a table (CSV), "
            "relative to the working directory or absolute"
        )
        return {}
    try:
        frame = tables.read_images(path)
    except InputError as error:
        run.problems.append(f"table {error}")
        return {}
    known = list(tables.IMAGES)
    others = list(frame.columns.difference(known))
    for name in others[:MOST_UNKNOWN]:
        run.problems.append(f"{path}, column {shown(name)}: {unknown('column', name, known)}")
    if len(others) > MOST_UNKNOWN:
        run.problems.append(f"{path}: {len(others) - MOST_UNKNOWN} more unknown columns")
    if frame.empty:
        run.problems.append(f"{path}: no rows; needs one row per image")
    schema = run.schema("images")
    planned: dict[str, dict] = {}
    seen: dict[str, int] = {}
    lines = [
        (line, row)
        for line, *values in frame[known].itertuples()
        for row in expand(run, dict(zip(known, values, strict=True)), path, line)
    ]
    for line, row in lines:
        where = f"{path}, row {line}"
        before = len(run.problems)
        wrong = dict(schema.problems(row))
        run.problems += [f"{where}, column {column}: {text}" for column, text in wrong.items()]
        check_row(run, row, where, seen, wrong)
        seen.setdefault(row["image"].casefold(), line)
        files = row_files(run, row, where, path.parent)
        model = row_model(run, row, where, path.parent)
        facts = row_facts(run, row, where, files)
        if model is not None and facts is not None:
            check_axes(run, row, where, facts, model[1])
        if facts is not None:
            check_exports(run, row, where, facts)
        if model is not None and can_plan and len(run.problems) == before:
            planned[row["image"]] = plan_row(run, row, where, files, model, facts)
    return planned


def expand(run: Run, row: Row, table: Path, line: int) -> list[Row]:
    """Return the rows that one with `all` scenes or frames stands for, else the row itself.

    Of a file that cannot be read nothing is known: its row stays as it is, and is a problem.
    """
    if ALL not in (row["scene"], row["frame"]):
        return [row]
    where, path = f"{table}, row {line}", table.parent / row["path"]
    if row["reference"]:
        run.problems.append(
            f"{where}, column reference: {shown(row['reference'])} cannot be that of several "
            "images; give every scene or frame with a reference a row of its own"
        )
    try:
        names = images.describe(path)["scenes"]
        chosen = range(len(names)) if row["scene"] == ALL else [row["scene"]]
        rows = [
            {**row, "scene": str(scene), "frame": str(frame), "image": image}
            for scene in chosen
            for frames in [frames_of(path, row, scene)]
            for frame, image in zip(
                frames or [row["frame"]],
                tables.expanded(row["image"], [scene] if row["scene"] == ALL else [], frames),
                strict=True,
            )
        ]
    except (InputError, OSError) as error:
        run.problems.append(f"{where}, column path: 'all' needs a file that can be read: {error}")
        return []
    run.expanded[row["image"]] = [one["image"] for one in rows]
    return rows


def frames_of(path: Path, row: Row, scene: str | int) -> Sequence[int]:
    """Return the frames of a scene where all are asked for; none: one is chosen."""
    if row["frame"] != ALL:
        return ()
    return range(images.describe(path, str(scene) or None)["n_frames"])


def check_row(
    run: Run, row: Row, where: str, seen: Mapping[str, int], wrong: Collection[str]
) -> None:
    """Note what the schema cannot say, of columns that it does not find `wrong`."""
    for column in PIXEL_UM:
        if row[column] and column not in wrong and not 0 < float(row[column]) <= 1e5:
            run.problems.append(
                f"{where}, column {column}: found '{row[column]}'; needs micrometers above 0, "
                "at most 100000"
            )
    diameter = row["diameter_px"]
    told = diameter not in ("", "auto", "native") and "diameter_px" not in wrong
    if told and not 0 < float(diameter) <= 1e5:
        run.problems.append(
            f"{where}, column diameter_px: found '{diameter}'; needs pixels above 0, at most 100000"
        )
    name = row["image"].casefold()
    if name in seen:
        run.problems.append(
            f"{where}, column image: {shown(row['image'])} is also in row {seen[name]}; needs ids "
            "that differ by more than upper and lower case"
        )
    elif name in RESERVED:
        run.problems.append(f"{where}, column image: '{row['image']}' is reserved; needs another")


def row_files(run: Run, row: Row, where: str, folder: Path) -> dict[str, Path]:
    """Return where image and reference lie; note those that do not exist."""
    files = {}
    demo = folder.resolve() == (run.repository / "resources").resolve()
    hint = "; `make setup` draws the demo images" if demo else ""
    for column in ("path", "reference"):
        path = folder / row[column]
        if row[column] and run.watch(path):
            files[column] = path
            if path.is_dir() and not any(str(near) in run.watched for near in inside(path)):
                run.problems.append(
                    f"{where}, column {column}: {shown(row[column])} is a folder that is not an "
                    "OME-Zarr; needs an image file or an OME-Zarr"
                )
        elif row[column]:
            near = near_files(path) if len(run.problems) < MOST_HINTS else ""
            run.problems.append(
                f"{where}, column {column}: no such file {shown(row[column])}{near}; "
                f"paths are relative to the table or absolute{hint}"
            )
    if len(files) == 2 and files["path"].resolve() == files["reference"].resolve():
        run.problems.append(
            f"{where}, column reference: the image itself; needs a label image of the true objects"
        )
    return files


def row_model(run: Run, row: Row, where: str, folder: Path) -> tuple[str, dict] | None:
    """Return path and metadata of the model of a row; note a bad one."""
    name = row["model"] or run.config.get("model")
    if not isinstance(name, str) or not name:
        return None
    try:
        return run.model(name, folder if row["model"] else Path())
    except InputError as error:
        label = f"{where}, column model" if row["model"] else "config, model"
        run.problems.append(f"{label}: {error}")
        return None


def row_facts(run: Run, row: Row, where: str, files: Mapping[str, Path]) -> dict | None:
    """Return what the headers of an image say; note a choice that it does not have.

    None when that cannot be known: whatever is wrong with the file, its own job says it and the
    other images go on.
    """
    if "path" not in files:
        return None
    try:
        facts = images.describe(files["path"])
        before = len(run.problems)
        check_choice(run, row, where, "scene", facts["scenes"])
        if len(run.problems) > before:
            return None
        if row["scene"]:
            facts = images.describe(files["path"], row["scene"])
    except Exception:
        return None
    check_choice(run, row, where, "frame", [str(index) for index in range(facts["n_frames"])])
    if row["channel"].casefold() not in facts["stains"]:
        check_choice(run, row, where, "channel", facts["channels"])
    return facts


def check_axes(run: Run, row: Row, where: str, facts: Mapping, meta: Mapping) -> None:
    """Note an image that has not as many axes as its model."""
    shape = facts["spatial_shape"]
    if len(shape) != meta["ndim"]:
        run.problems.append(
            f"{where}, column model: '{row['model'] or run.config['model']}' is for "
            f"{meta['ndim']}D images, {shown(row['path'])} has {len(shape)} axes {tuple(shape)}; "
            f"needs a {len(shape)}D model"
        )


def check_exports(run: Run, row: Row, where: str, facts: Mapping) -> None:
    """Note a 3D image whose outlines are to be written for QuPath."""
    exports, shape = run.config.get("exports"), facts["spatial_shape"]
    if len(shape) == 3 and isinstance(exports, list) and "geojson" in exports:
        run.problems.append(
            f"config, exports: geojson holds outlines in a plane only, {shown(row['path'])} has 3 "
            f"axes {tuple(shape)} ({where}); needs 2D images: leave geojson out, or give the 3D "
            "images a table of their own"
        )


def plan_row(
    run: Run,
    row: Row,
    where: str,
    files: Mapping[str, Path],
    model: tuple[str, dict],
    facts: Mapping | None,
) -> dict[str, object]:
    """Return the plan of one image; note a tiling that does not fit its model."""
    path, meta = model
    shape = meta["block"] if facts is None else facts["spatial_shape"]
    on_grid = shape if facts is None else known_grid(run, row, facts, meta)
    ours = "widths" in meta["net"]  # else adopted, which computes whole windows
    size = cost.Size(
        shape=tuple(shape),
        grid_shape=tuple(on_grid),
        itemsize=2 if facts is None else facts["n_bytes"] // math.prod(shape),
        block=tuple(meta["block"]),
        width=meta["net"]["widths"][0] if ours else cost.UNKNOWN_WIDTH,
        cuts=ours,
        asks=asks_network(run, row, facts, meta),
        n_batches=1 if facts is None else count_batches(run, on_grid, meta, where),
        n_parts=1 if facts is None else count_parts(run, shape),
        **tile_sizes(run, meta),
    )
    return {
        **{
            column: row[column]
            for column in ("channel", "scene", "frame", "diameter_px", "group", *PIXEL_UM)
        },
        "path": str(files["path"]),
        "reference": str(files["reference"]) if "reference" in files else None,
        "model": path,
        "n_batches": size.n_batches,
        "n_parts": size.n_parts,
        "size": asdict(size),
        "asked": cost.asked(size),
    }


def asks_network(run: Run, row: Row, facts: Mapping | None, meta: Mapping) -> bool:
    """Tell whether tile.py will ask the network how large the objects of an image are."""
    wanted = row["diameter_px"] or str(run.config["diameter_px"])
    if wanted != "auto" or not meta.get("diameter_px"):
        return False
    known = set(() if facts is None else facts["pixel_um"])
    known |= {column[-1] for column in PIXEL_UM if row[column]}
    spaced = facts is not None and known >= set(facts["spatial_axes"])
    return not (meta.get("pixel_um") and spaced)


def tile_sizes(run: Run, meta: Mapping) -> dict[str, tuple[int, ...]]:
    """Return core of a tile and halo of a block, px, as far as they bear on the cost."""
    wanted = run.config["tiling"]["core_px"]
    core = meta["block"]
    if not isinstance(wanted, str):
        core = grid.sizes_of([int(n) for n in wanted], core)
    halo = [-(-n // step) * step for n, step in zip(meta["radius"], meta["stride"], strict=True)]
    return {"core": tuple(core), "halo": tuple(halo)}


def known_grid(run: Run, row: Row, facts: Mapping, meta: Mapping) -> Sequence[int]:
    """Return the shape of the network's grid where it can be known without reading pixels.

    Where it is found with the network later, jobs are counted for the image's own grid.
    """
    shape, sizes = facts["spatial_shape"], meta.get("diameter_px")
    wanted = row["diameter_px"] or str(run.config["diameter_px"])
    if wanted in ("auto", "native") or not sizes:
        return shape
    diameter = [float(wanted)] * len(shape)
    return scale.grid_shape(shape, scale.factors(diameter, sizes["smallest"], sizes["largest"]))


def count_batches(run: Run, shape: Sequence[int], meta: Mapping, where: str) -> int:
    """Return the number of batches of an image; note a tiling that does not fit the model."""
    tiling = run.config["tiling"]
    core, halo = (
        None if isinstance(sizes, str) else grid.sizes_of([int(n) for n in sizes], default)
        for sizes, default in (
            (tiling["core_px"], meta["block"]),
            (tiling["halo"], [0, 0, 0][-len(shape) :]),
        )
    )
    wrong = plan.tiling_problems(core, halo, stride=meta["stride"], block=meta["block"])
    wrong += plan.clustering_problems(run.config["clustering"], meta)
    if wrong:
        run.problems += [f"config, {text} ({where})" for text in wrong]
        return 1
    per_batch = None if tiling["tiles_per_batch"] == "auto" else int(tiling["tiles_per_batch"])
    return plan.n_batches(shape, core or meta["block"], per_batch)


def count_parts(run: Run, shape: Sequence[int]) -> int:
    """Return the number of jobs that write the labels of an image."""
    jobs = run.config["stitching"]["jobs"]
    return plan.n_parts(shape, None if jobs == "auto" else int(jobs))


def check_choice(run: Run, row: Row, where: str, column: str, names: Sequence[str]) -> None:
    """Note a scene, frame or channel that must be chosen, or that the file does not have."""
    wanted = row[column]
    by_name = wanted.casefold() in {str(name).casefold() for name in names}
    by_index = wanted.isdecimal() and len(wanted) < 9 and int(wanted) < len(names)
    if not (by_name or by_index) and (wanted or len(names) > 1):
        listed = ", ".join(f"{index} ({name})" for index, name in enumerate(names[:20]))
        many = f"{len(names)} {column}{'' if len(names) == 1 else 's'}"
        run.problems.append(
            f"{where}, column {column}: found {shown(wanted)}, the file has {many}: {listed}; "
            "needs one of them, by index or name"
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    recorder = cli.Recorder("check", args)
    text = sys.stdin.read() if str(args.config) == "-" else args.config.read_text(encoding="utf-8")
    try:
        config = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{args.config}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{args.config}: needs a mapping of keys to values")
    run = Run(config, args.repository)
    can_plan = check_config(run)
    table = find_table(run)
    planned = {} if table is None else check_table(run, table, can_plan)
    if run.problems:
        for problem in dict.fromkeys(run.problems):
            sys.stderr.write(f"error: {one_line(problem)}\n")
        sys.exit(1)
    start = config["training"]["start"]
    found = {
        "table": None if table is None else str(table),
        "images": planned,
        "expanded": run.expanded,
        "start": None if start is None else run.model(start, Path())[0],
    }
    sys.stdout.write(json.dumps({**found, "watch": run.watched}))
    recorder.write(n_images=len(planned))


if __name__ == "__main__":
    cli.run(main)
