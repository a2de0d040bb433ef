r"""Describe a run as a Workflow Run RO-Crate: what went in, what came out, with what it was made.

https://w3id.org/ro/wfrun/workflow/0.5. The crate is the folder of results; what went in lies
elsewhere and is named by its file URI. Times are those of the records of the images, so the same
records give the same bytes.

Example
-------
    python crate.py --summary results/summary.csv --table images.csv --config "$(cat run.json)" \
        --snakefile ~/iaunet-workflow/Snakefile --results results \
        --parts results/ro-crate --output results/ro-crate-metadata.json
"""

import argparse
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import yaml
from rocrate.model.contextentity import ContextEntity
from rocrate.model.entity import Entity
from rocrate.rocrate import ROCrate

from iaunet import __version__, checksums, cli, records, tables
from iaunet.errors import InputError

log = logging.getLogger("crate")

CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"
PROFILES = (
    ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate", "0.5"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0"),
)
DONE, FAILED = (f"http://schema.org/{name}ActionStatus" for name in ("Completed", "Failed"))
MADE = {
    "{image}.ome.zarr": "image pyramid and labels, OME-NGFF 0.5",
    "objects.csv": "one row per object",
    "objects.parquet": "one row per object",
    "seams.csv": "evidence and verdict where tiles meet",
    "metrics.json": "counts, densities, seams, throughput, accuracy",
    "provenance.json": "what went in and what each step used",
    "report.html": "page to look at",
}
"""Final files of an image."""
FORMATS = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".png": "image/png",
    ".safetensors": "application/octet-stream",
    "": "text/plain",
    ".yaml": "application/yaml",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--summary", type=Path, required=True, help="summary.csv: images, status, reasons")
    add("--table", type=Path, required=True, help="table of images, CSV")
    add("--expanded", type=Path, help="JSON: images that a row with all scenes or frames is")
    add("--config", required=True, metavar="JSON", help="all settings of the run")
    add("--snakefile", type=Path, required=True, help="the workflow")
    add("--results", type=Path, required=True, help="folder with one per image: the crate")
    add("--parts", type=Path, required=True, help="folder to write, inside: workflow, settings")
    add("--output", type=Path, required=True, help="ro-crate-metadata.json to write")
    return parser.parse_args(argv)


class Made(NamedTuple):
    """One image in the crate."""

    name: str
    reason: str
    provenance: Mapping | None
    went_in: list[Entity]
    came_out: list[Entity]


class Run:
    """The crate of one run."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.crate = ROCrate(version="1.1")
        self.crate.metadata.extra_contexts.append(CONTEXT)

    def thing(self, identity: str, kind: str, **more: object) -> Entity:
        """Add what is no file; a second one of the same identity is the first."""
        known = self.crate.get(identity)
        return known or self.crate.add(ContextEntity(self.crate, identity, {"@type": kind, **more}))

    def inside(self, path: Path, text: str, facts: Mapping | None = None) -> Entity:
        """Add a file or a folder of the crate; its checksum is that of `facts`, when known."""
        place = path.relative_to(self.results).as_posix()
        about = {**described(path, text), **digest(path, facts)}
        add = self.crate.add_dataset if path.is_dir() else self.crate.add_file
        return add(dest_path=place, properties=about)

    def outside(self, path: Path, text: str, facts: Mapping | None = None) -> Entity:
        """Add a file or a folder that lies elsewhere, by its URI; it may be gone."""
        uri = path.resolve().as_uri() + ("/" if path.is_dir() else "")
        known = self.crate.get(uri)
        if known is not None:
            return known
        about = {**described(path, text), **(digest(path, facts) if facts else {})}
        add = self.crate.add_dataset if path.is_dir() else self.crate.add_file
        return add(uri, properties=about)


def described(path: Path, text: str) -> dict[str, str]:
    """Return name, meaning and format of a file."""
    encoding = FORMATS.get(path.suffix.lower())
    known = {} if encoding is None or path.is_dir() else {"encodingFormat": encoding}
    return {"name": path.name, "description": text, **known}


def digest(path: Path, facts: Mapping | None = None) -> dict[str, str]:
    """Return size and SHA-256 of a file or folder, as recorded or as found now."""
    facts = checksums.facts(path) if facts is None else facts
    return {"contentSize": str(facts["bytes"]), "sha256": str(facts["sha256"])}


def write_parts(args: argparse.Namespace, config: Mapping, folder: Path) -> None:
    """Write workflow, settings and table as this run used them."""
    folder.mkdir(parents=True)
    shutil.copyfile(args.snakefile, folder / "Snakefile")
    shutil.copyfile(args.table, folder / "images.csv")
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))


def of_image(run: Run, row: Mapping, reason: str, folder: Path) -> Made:
    """Add what went into an image and what came out of it."""
    home = run.results / row["image"]
    try:
        found = None if reason else records.read(home / "provenance.json")
    except InputError as error:
        found, reason = None, str(error)
    if found is None:
        path = folder / row["path"]
        went_in = [run.outside(path, "image")] if path.exists() else []
        return Made(row["image"], reason, None, went_in, [])
    went_in = [
        run.outside(Path(found["folder"]) / facts["path"], text, facts)
        for text, facts in records.inputs(found).items()
    ]
    known = found.get("outputs", {})
    came_out = []
    for pattern, text in MADE.items():
        name = pattern.format(image=row["image"])
        if (home / name).exists():
            folded = known.get(name) if (home / name).is_dir() else None
            came_out.append(run.inside(home / name, text, folded))
    return Made(row["image"], "", found, went_in, came_out)


def moments(images: Sequence[Made], otherwise: Path) -> tuple[str, str]:
    """Return when the first job of the images began and the last one ended, ISO 8601.

    Without records, both are the time of a file.
    """
    jobs = [
        job
        for made in images
        if made.provenance
        for step in made.provenance["steps"]
        for job in step.get("jobs", [])
        if "started" in job
    ]
    first = [job["started"] for job in jobs] or [otherwise.stat().st_mtime]
    last = [job["started"] + job["seconds"] for job in jobs] or first
    return tuple(
        datetime.fromtimestamp(int(seconds), UTC).isoformat() for seconds in (min(first), max(last))
    )


def software(run: Run, images: Sequence[Made]) -> Entity:
    """Add the steps of the workflow as one program, with the versions that were installed."""
    versions: dict[str, set[str]] = {}
    for made in images:
        for step in made.provenance["steps"] if made.provenance else ():
            for name, version in {**step["packages"], "python": step.get("python")}.items():
                versions.setdefault(name, set()).add(str(version))
    needs = [
        run.thing(
            f"#{name}", "SoftwareApplication", name=name, softwareVersion=", ".join(sorted(found))
        )
        for name, found in sorted(versions.items())
    ]
    more = {"softwareRequirements": needs} if needs else {}
    name = "iaunet-workflow"
    return run.thing(
        "#steps", "SoftwareApplication", name=name, softwareVersion=__version__, **more
    )


def status(reason: str) -> dict[str, object]:
    """Return how an action ended."""
    return {"actionStatus": FAILED, "error": reason} if reason else {"actionStatus": DONE}


def commits(images: Sequence[Made]) -> str:
    """Return the commit, or all that the images were made with."""
    found = {made.provenance["code"]["commit"] for made in images if made.provenance}
    return ", ".join(sorted(str(commit) for commit in found if commit))


def describe(run: Run, args: argparse.Namespace, images: Sequence[Made]) -> None:
    """Fill the crate: workflow, run, one action per image."""
    crate, root = run.crate, run.crate.root_dataset
    began, ended = moments(images, args.summary)
    workflow = crate.add_workflow(
        dest_path=f"{args.parts.name}/Snakefile",
        main=True,
        lang="snakemake",
        properties={
            "name": "iaunet-workflow",
            "description": "Instance segmentation of microscopy images of any size, 2D and 3D",
            "version": commits(images) or __version__,
            **digest(args.parts / "Snakefile"),
        },
    )
    texts = {"images.csv": "table of images", "config.yaml": "all settings, defaults included"}
    given = [run.inside(args.parts / name, text) for name, text in texts.items()]
    pages = {"csv": "one row per image", "html": "page of the run"}
    made = [
        run.inside(args.summary.with_suffix(f".{suffix}"), text)
        for suffix, text in pages.items()
        if args.summary.with_suffix(f".{suffix}").exists()
    ]
    failed = [one for one in images if one.reason]
    n_failed = f"{len(failed)} of {len(images)} images failed: "
    reason = n_failed + ", ".join(one.name for one in failed) if failed else ""
    actions = [
        crate.add_action(
            workflow,
            "#run",
            object=unique([*given, *(entity for one in images for entity in one.went_in)]),
            result=unique([*made, *(entity for one in images for entity in one.came_out)]),
            properties={
                "name": "Run of the workflow",
                "description": f"{len(images)} images of the table",
                "startTime": began,
                "endTime": ended,
                **status(reason),
            },
        )
    ]
    steps = software(run, images)
    actions += [of_action(run, steps, one, args.summary) for one in images]
    root["name"] = "Run of iaunet-workflow"
    root["description"] = f"Segmented objects of {len(images)} images"
    root["datePublished"] = ended
    root["license"] = "Not stated: that of the images applies"
    root["mentions"] = actions
    root["conformsTo"] = [
        run.thing(uri, "CreativeWork", name=name, version=version)
        for uri, name, version in PROFILES
    ]


def of_action(run: Run, steps: Entity, made: Made, otherwise: Path) -> Entity:
    """Add the making of one image."""
    began, ended = moments([made], otherwise)
    return run.crate.add_action(
        steps,
        f"#image-{made.name}",
        object=unique(made.went_in),
        result=unique(made.came_out),
        properties={
            "name": f"Segmentation of image {made.name}",
            "description": "Its options and versions: provenance.json",
            "startTime": began,
            "endTime": ended,
            **status(made.reason),
        },
    )


def unique(entities: Sequence[Entity]) -> Entity | list[Entity]:
    """Return the entities, each once, in their order; a single one as it is."""
    found = list({entity.id: entity for entity in entities}.values())
    return found[0] if len(found) == 1 else found


def main(argv: Sequence[str] | None = None) -> None:
    """Write the crate of a run."""
    args = parse_args(argv)
    recorder = cli.Recorder("crate", args)
    config = cli.mapping("--config", args.config)
    if args.parts.parent != args.results or args.output.parent != args.results:
        raise InputError(f"{args.parts}, {args.output}: need to lie in {args.results}")
    summary = tables.read_text(args.summary, ("image", "status", "reason"))
    reasons = {
        row.image: (row.reason or row.status) if row.status != "ok" else ""
        for row in summary.itertuples()
    }
    run = Run(args.results)
    rows = tables.read_rows(args.table, args.expanded)
    with cli.write_whole(args.parts) as partial:
        write_parts(args, config, partial)
    images = [
        of_image(run, row, reasons.get(row["image"], "not in the summary"), args.table.parent)
        for row in rows
    ]
    describe(run, args, images)
    with cli.write_whole(args.output) as partial:
        text = json.dumps(run.crate.metadata.generate(), indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")
    n_failed = sum(bool(made.reason) for made in images)
    log.info("%s: %d images, %d failed", args.output, len(images), n_failed)
    recorder.write(n_images=len(images), n_failed=n_failed)


if __name__ == "__main__":
    cli.run(main)
