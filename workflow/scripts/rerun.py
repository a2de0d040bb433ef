r"""Repeat the analysis of an image from its provenance.json, and tell whether the bytes agree.

Image, model and reference must be what they were: their checksums are compared first. The
workflow then runs in a fresh folder, with the settings that were recorded. Results that exist are
only read. The same command goes on where a killed one stopped.

Example
-------
    python rerun.py results/a/provenance.json --output /tmp/again
"""

import argparse
import csv
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from iaunet import __version__, checksums, cli, machine, records, sealed, tables
from iaunet.errors import InputError

log = logging.getLogger("rerun")

FILES = ("objects.csv", "objects.parquet", "seams.csv", "metrics.json")
TIMES = ("seconds", "mpx_per_s", sealed.KEY)
"""What metrics.json says of the time that it took, and the checksum that holds it."""
SHOWN = 10


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("provenance", type=Path, help="provenance.json of the image")
    parser.add_argument(
        "--output", type=Path, help="folder of the repeat; default: beside that of the image"
    )
    parser.add_argument("--cores", default="all", help="cores to use, a number or all")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Repeat one image and compare."""
    args = parse_args(argv)
    recorder = cli.Recorder("rerun", args)
    found = records.read(args.provenance)
    home, image = args.provenance.absolute().parent, found["image"]
    folder = args.output or home.with_name(f"{home.name}.rerun")
    places = check_inputs(found, home.parent.parent, args.provenance)
    for text in differences(found):
        log.warning("%s", text)
    prepare(folder, found, places)
    again = folder / "results" / image
    repeat(folder, again, args.cores)
    rows = compared(home, again, image)
    sys.stdout.write(table(rows))
    different = [name for name, _, verdict in rows if verdict != "equal"]
    recorder.write(n_equal=len(rows) - len(different), different=different)
    if different:
        listed = ", ".join(different[:SHOWN])
        raise InputError(
            f"{args.provenance}: {len(different)} of {len(rows)} results are not the same again: "
            f"{listed}; the repeat lies in {again}, see the warnings for what else was different"
        )
    sys.stdout.write(f"the same again: all {len(rows)} results of {image} agree\n")


def check_inputs(found: Mapping, run_folder: Path, path: Path) -> dict[str, Path]:
    """Return where image, model and reference lie; raise unless they are what they were.

    Relative paths are relative to the folder of the run, as recorded; when that has moved, to
    the folder that holds the results.
    """
    problems, places = [], {}
    for name, facts in records.inputs(found).items():
        tried = [Path(found["folder"]) / facts["path"], run_folder / facts["path"]]
        place = next((place for place in tried if place.exists()), None)
        if place is None:
            problems.append(f"no {name} at {tried[0]}; put it back there")
            continue
        places[name] = place.absolute()
        sha256 = checksums.sha256(place)
        if sha256 != facts["sha256"]:
            problems.append(
                f"the {name} {place} was changed: sha256 {sha256[:12]}, recorded is "
                f"{facts['sha256'][:12]}; needs the one that was segmented"
            )
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}")
    return places


def differences(found: Mapping) -> list[str]:
    """Return what is not as it was when the image was segmented, as sentences."""
    code = machine.code()
    then = {"version": found["version"], "commit": found["code"]["commit"]}
    now = {"version": __version__, "commit": code["commit"]}
    installed = {"python": platform.python_version(), **cli.package_versions()}
    now |= {**installed, "cpu": machine.cpu()}
    for name in (*installed, "cpu"):
        known = {{**step.get("packages", {}), **step}.get(name) for step in found["steps"]}
        then[name] = " and ".join(sorted(known - {None, ""}))
    changed = [
        f"{name}: {text or 'unknown'} then, {now[name] or 'unknown'} now"
        for name, text in then.items()
        if text != now[name]
    ]
    for dirty, when in ((found["code"]["dirty"], "then"), (code["dirty"], "now")):
        if dirty:
            changed.append(f"commit: its files were changed {when}, so the code may differ")
    return changed


def prepare(folder: Path, found: Mapping, places: Mapping[str, Path]) -> None:
    """Write table and config of the repeat; go on with what a killed repeat of the same left."""
    row = {**found["config"]["image"], "path": places["image"], "model": places["model"]}
    if "reference" in places:
        row["reference"] = places["reference"]
    used = {step["device"] for step in found["steps"] if "device" in step}
    config = {key: value for key, value in found["config"].items() if key != "image"}
    # `auto` could mean another one here.
    config |= {"images": "images.csv", "model": str(places["model"])}
    config |= {"device": used.pop()} if len(used) == 1 else {}
    row = {key: "" if row.get(key) is None else str(row[key]) for key in tables.IMAGES}
    text = json.dumps(config, indent=1)  # JSON is YAML
    if folder.exists() and any(folder.iterdir()):
        known = folder / "config.yaml", folder / "images.csv"
        finished = folder / "results" / row["image"] / "metrics.json"
        same = all(path.is_file() for path in known) and (known[0].read_text() == text)
        if not same or finished.exists():
            raise InputError(
                f"{folder}: holds files already; remove it, or choose a new folder with --output"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with cli.write_whole(folder / "images.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    with cli.write_whole(folder / "config.yaml") as partial:
        partial.write_text(text)


def repeat(folder: Path, again: Path, cores: str) -> None:
    """Run the workflow for one image, without its page."""
    snakefile = machine.REPOSITORY / "Snakefile"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile)]
    command += ["--directory", str(folder), "--cores", cores]
    command += [f"results/{again.name}/metrics.json"]
    with (folder / "snakemake.log").open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=output)
    if done.returncode:
        raise InputError(
            f"{folder}/snakemake.log: the repeat failed, it says why; the same command goes on"
        )


def compared(home: Path, again: Path, image: str) -> list[tuple[str, int, str]]:
    """Return what was compared, of how many files it is, and the verdict: equal or what differs.

    Files of the OME-Zarr are told by array; a shard is a file.
    """
    store = f"{image}.ome.zarr"
    groups: dict[str, list[str]] = {}
    for root in (home, again):
        names = [path.relative_to(root).as_posix() for path in checksums.files(root / store)]
        for name in names:
            part = name.partition("/c/")[0] if "/c/" in name else name.rpartition("/")[0]
            kept = groups.setdefault(part, [])
            kept.append(name)
    rows = []
    for part, names in [*sorted(groups.items()), *((name, [name]) for name in FILES)]:
        each = sorted(set(names))
        verdicts = {name: same(home / name, again / name) for name in each}
        wrong = [f"{name}: {why}" for name, why in verdicts.items() if why]
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        rows.append((part, len(each), "; ".join(wrong[:SHOWN]) + more if wrong else "equal"))
    return rows


def same(one: Path, other: Path) -> str:
    """Return in what two files differ, or an empty text."""
    for path, when in ((one, "then"), (other, "now")):
        if not path.is_file():
            return f"no such file {when}"
    if one.suffix == ".json":
        return "" if told(one) == told(other) else "other values"
    if one.stat().st_size != other.stat().st_size:
        return f"{one.stat().st_size:,} bytes then, {other.stat().st_size:,} now"
    return "" if checksums.sha256(one) == checksums.sha256(other) else "other bytes"


def told(path: Path) -> dict:
    """Return what a JSON file says, but for times and for where the image lay."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if path.name == "metrics.json":
        return {key: value for key, value in values.items() if key not in TIMES}
    values.get("attributes", {}).get("iaunet", {}).get("source", {}).pop("path", None)
    return values


def table(rows: Sequence[tuple[str, int, str]]) -> str:
    """Return the comparison for a reader."""
    wide = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{wide}}  {n:>6}  {verdict}" for name, n, verdict in rows]
    return "\n".join([f"{'result':<{wide}}   files  verdict", *lines]) + "\n"


if __name__ == "__main__":
    cli.run(main)
