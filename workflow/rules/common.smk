"""Check config and table; every function of the workflow."""

import csv
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import snakemake.exceptions
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import update_config

# Not the folder of the main Snakefile: that is another when this workflow is a module of it.
REPOSITORY = Path(workflow.current_basedir).parents[1]
EXPORTS = {
    "geojson": "geojson",
    "rois": "rois.zip",
    "tiff": "labels.tif",
    "ome-tiff": "labels.ome.tif",
    "anndata": "h5ad",
}
RUNNING = Path(".snakemake/iaunet/running.json")
EXPANDED = Path(".snakemake/iaunet/expanded.json")

# The Python that runs Snakemake runs the steps, also when its environment is not activated; an
# environment that Snakemake activates for a job comes first.
os.environ.update(
    PATH=os.pathsep.join(
        [str(Path(sys.executable).parent), os.getenv("PATH", os.defpath)]
    )
)


def step(name):
    """Return the path of a step as seen from the working directory."""
    return os.path.relpath(REPOSITORY / "workflow/scripts" / name)


def library_version():
    """Return the version of the library; an upgrade changes it and redoes the work."""
    text = (REPOSITORY / "workflow/scripts/iaunet/__init__.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


def check_tree(value):
    """Raise where a config has far more values than settings, no end, or keys that are no text.

    Aliases of YAML make gigabytes of one kB, or a list that holds itself.
    """
    left, n_values = [(value, 0)], 0
    while left:
        item, depth = left.pop()
        n_values += 1
        if n_values > 100_000 or depth > 50:
            raise WorkflowError(
                "config: more than 100,000 values, or more than 50 lists within each other; "
                "needs the sections of config.yaml and their values"
            )
        odd = (
            [key for key in item if type(key) is not str]
            if isinstance(item, dict)
            else []
        )
        if odd:
            raise WorkflowError(
                f"config: the key {odd[0]!r} is no text; correct or quote it"
            )
        inner = item.values() if isinstance(item, dict) else item
        if isinstance(item, (dict, list)):
            left.extend((one, depth + 1) for one in inner)


def with_defaults(settings):
    """Return the defaults with these settings over them, section by section."""
    found = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    update_config(found, settings)
    return found


def with_numbers(value):
    """Return the value with its texts that are numbers as numbers.

    `--config 'tiling={core_px: [256, 256]}'` arrives as texts.
    """
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    for kind in (int, float) if isinstance(value, str) else ():
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def is_current(plan):
    """Tell whether no file that the plan rests on has changed since."""
    for path, facts in plan["watch"].items():
        try:
            found = os.stat(path)
        except OSError:
            return False
        if [found.st_mtime_ns, found.st_size] != facts:
            return False
    return True


def checked_plan():
    """Return the plan of `check.py`: the files, the model and the number of batches per image.

    It is kept beside Snakemake's own records, so that the processes of the jobs, which parse
    this file as well, neither open the images again nor see another plan than the run began with.
    """
    text = json.dumps(config, sort_keys=True, default=str)
    key = hashlib.sha256(f"{VERSION} {step('check.py')} {text}".encode()).hexdigest()[
        :16
    ]
    kept = Path(".snakemake/iaunet") / f"plan-{key}.json"
    if kept.is_file():
        plan = json.loads(kept.read_text())
        if not workflow.is_main_process or is_current(plan):
            return plan
    command = [
        sys.executable,
        step("check.py"),
        "--config",
        "-",
        "--repository",
        str(REPOSITORY),
    ]
    result = subprocess.run(command, input=text, capture_output=True, text=True)
    if result.returncode != 0:
        raise WorkflowError(f"config or table of images:\n{result.stderr.strip()}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
    partial.write_text(result.stdout)
    partial.replace(kept)
    return json.loads(result.stdout)


def is_alive(noted):
    """Tell whether the process that `note_run` wrote down still runs, on this machine."""
    try:
        process = psutil.Process(int(noted["pid"]))
        # The clock may have been set meanwhile.
        same = abs(process.create_time() - noted["began"]) < 60
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def forget_killed_run():
    """Remove the locks that Snakemake left when it was killed, so that the next run goes on.

    Only when the run that holds them was on this machine and is no more: `note_run` said which
    it was. Locks of a run elsewhere stay, and Snakemake says what to do.
    """
    locks = Path(".snakemake/locks")
    if not (workflow.is_main_process and RUNNING.is_file() and locks.is_dir()):
        return
    try:
        noted = json.loads(RUNNING.read_text())
        killed = noted["host"] == platform.node() and not is_alive(noted)
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return
    if killed:
        logger.info(
            "The last run in this folder was killed; going on where it stopped."
        )
        shutil.rmtree(locks)


def note_run():
    """Write which process runs the workflow in this folder."""
    began = psutil.Process().create_time()
    partial = RUNNING.with_name(f"{RUNNING.name}.{os.getpid()}.partial")
    partial.write_text(
        json.dumps({"host": platform.node(), "pid": os.getpid(), "began": began})
    )
    partial.replace(RUNNING)


def note_expanded():
    """Write which images the rows with all scenes or frames are, for the summary."""
    if not workflow.is_main_process:
        return
    EXPANDED.parent.mkdir(parents=True, exist_ok=True)
    partial = EXPANDED.with_name(f"{EXPANDED.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(PLAN.get("expanded", {})))
    partial.replace(EXPANDED)


def refusal():
    """Return the error of a run in a folder that another one has locked: who, where, what to do."""
    folder = Path.cwd()
    try:
        noted = json.loads(RUNNING.read_text())
        pid, host = int(noted["pid"]), str(noted["host"])
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(noted["began"]))
    except (OSError, ValueError, KeyError, TypeError):
        return WorkflowError(
            f"error: {folder} is locked by another run, or one that was killed; wait until it ends; "
            "when there is none, run the same command once with --unlock"
        )
    who = f"error: {folder} is locked by the run of process {pid} on {host}, begun {began};"
    if host == platform.node():
        return WorkflowError(
            f"{who} wait until it ends, or end it with: kill -INT {pid}"
        )
    return WorkflowError(
        f"{who} wait until it ends, or end it there with: kill -INT {pid}; when it is no more, run "
        "the same command once with --unlock"
    )


# Snakemake raises this one when it finds locks; its own text does not tell whose they are.
snakemake.exceptions.LockException = refusal


def ablation_rows_file():
    """Return the table that says what every row of the ablation is."""
    return os.path.relpath(REPOSITORY / "resources/ablation.csv")


def ablation_rows():
    """Return the rows of the ablation by name, as their table says."""
    with open(ablation_rows_file(), newline="", encoding="utf-8") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


check_tree(config)
config = with_defaults(config)
for section in ("tiling", "normalize", "clustering", "stitching", "diameter_px"):
    config[section] = with_numbers(config[section])
for section, keys in {
    "training": {"minutes", "steps", "seed"},
    "ablation": {"rows", "steps", "seeds"},
}.items():
    if isinstance(config[section], dict):
        for key in keys & set(config[section]):
            config[section][key] = with_numbers(config[section][key])

forget_killed_run()
VERSION = library_version()
PLAN = checked_plan()
note_expanded()
ABLATION = ablation_rows()
IMAGES = PLAN["images"]


# The ids that the table may have. Not the ids that it has: Snakemake copies the constraint into
# every path of every job, and a thousand names make it a quarter slower.
wildcard_constraints:
    image="[A-Za-z0-9][A-Za-z0-9._-]*",
    suffix="|".join(EXPORTS.values()),
    batch="[0-9]+",
    part="[0-9]+",
    row="[0-9]+[a-z]?",
    trained="[0-9]+[a-z]?",
    seed="[0-9]+",


def scaled(base):
    """Return a resource that grows with every attempt."""

    def resource(wildcards, attempt):
        return base * attempt

    return resource


def memory(name):
    """Return a function for the MB of a job of a step: by the image, threads and attempt."""

    def mem_mb(wildcards, threads, attempt):
        asked = row_of(wildcards)["asked"][name]
        more = asked["mem_mb_per_thread"] * (threads - 1)
        return (asked["mem_mb"] + more) * attempt

    return mem_mb


def spare_threads(name):
    """Return a function for the cores of a job: those that no other job of the step would use.

    With fewer batches than cores on one machine, and as far as half its memory lasts.
    """

    jobs = sum(row["n_batches"] for row in IMAGES.values())

    def threads(wildcards):
        if workflow.non_local_exec or not workflow.is_main_process:
            return 1
        asked = row_of(wildcards)["asked"][name]
        memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e6
        more = (memory_mb - asked["mem_mb"]) // max(1, asked["mem_mb_per_thread"])
        cores = workflow.resource_settings.cores or 1
        return max(1, min(cores // jobs, 1 + int(more)))

    return threads


def minutes(name):
    """Return a function for the minutes of a job of a step: by the image and the attempt."""

    def runtime(wildcards, attempt):
        return row_of(wildcards)["asked"][name]["runtime_min"] * attempt

    return runtime


def stitch_memory(wildcards, threads, attempt):
    """Return MB for stitching; segmenting windows again takes the network besides."""
    name = "infer" if config["stitching"]["verify_windows"] else "stitch"
    return max(
        memory(one)(wildcards, threads, attempt)
        for one in dict.fromkeys(("stitch", name))
    )


def image_config(wildcards):
    """Return all settings of an image and its row of the table, as JSON."""
    row = row_of(wildcards)
    columns = "path model channel scene frame diameter_px reference group"
    columns = [*columns.split(), "pixel_um_z", "pixel_um_y", "pixel_um_x"]
    image = {"image": wildcards.image, **{name: row[name] for name in columns}}
    others = {"images", "training", "ablation"}
    settings = {key: value for key, value in config.items() if key not in others}
    return json.dumps({"image": image, **settings}, default=str)


def run_config():
    """Return all settings of the run, as JSON."""
    return json.dumps(config, default=str)


def workflow_file():
    """Return this workflow, as seen from the working directory."""
    return os.path.relpath(REPOSITORY / "Snakefile")


def row_of(wildcards):
    """Return the plan of an image."""
    if wildcards.image not in IMAGES:
        raise WorkflowError(f"no image '{wildcards.image}' in {PLAN['table']}")
    return IMAGES[wildcards.image]


def image_path(wildcards):
    """Return the file of an image."""
    return row_of(wildcards)["path"]


def model_path(wildcards):
    """Return the model file of an image."""
    return row_of(wildcards)["model"]


def reference_path(wildcards):
    """Return the label image with the true instances, or nothing."""
    return row_of(wildcards)["reference"] or []


def n_batches(wildcards):
    """Return the number of batches of an image."""
    return row_of(wildcards)["n_batches"]


def per_number(pattern, name, numbers):
    """Return a function that lists a file of an image for all numbers of a wildcard, in order."""

    def paths(wildcards):
        return expand(pattern, image=wildcards.image, **{name: numbers(wildcards)})

    return paths


def per_batch(pattern):
    """Return a function that lists a file of all batches of an image, in order."""
    return per_number(pattern, "batch", lambda wildcards: range(n_batches(wildcards)))


def n_parts(wildcards):
    """Return the number of jobs that write the labels of an image; 1: stitch does it itself."""
    return row_of(wildcards)["n_parts"]


def parts(wildcards):
    """Return the parts of the labels that have a job of their own."""
    count = n_parts(wildcards)
    return range(count) if count > 1 else []


def per_part(pattern):
    """Return a function that lists a file of all parts of the labels of an image, in order."""
    return per_number(pattern, "part", parts)


def step_records(wildcards):
    """Return the records of the steps that come before measuring, in order."""
    folder = f"results/{wildcards.image}/steps/records"
    batches = range(n_batches(wildcards))
    painted = [f"{folder}/paint-{part}.json" for part in parts(wildcards)]
    return [
        f"{folder}/tile.json",
        *(f"{folder}/infer-{batch}.json" for batch in batches),
        *(f"{folder}/cluster-{batch}.json" for batch in batches),
        *([f"{folder}/number.json"] if painted else []),
        *painted,
        f"{folder}/stitch.json",
    ]


def sizes(key):
    """Return a word, or the sizes per axis, of the tiling section."""
    value = config["tiling"][key]
    return value if isinstance(value, str) else [int(number) for number in value]


def image_options(wildcards):
    """Return the options that choose what to read of an image, as the table says."""
    row = row_of(wildcards)
    columns = ("channel", "scene", "frame", "pixel_um_z", "pixel_um_y", "pixel_um_x")
    return [
        f"--{column.replace('_', '-')}={row[column]}"
        for column in columns
        if row[column]
    ]


def diameter_option(wildcards):
    """Return the diameter of the objects of an image: of the table, else of the config."""
    return row_of(wildcards)["diameter_px"] or config["diameter_px"]


def reference_option(wildcards):
    """Return the option that names the reference, or nothing."""
    path = reference_path(wildcards)
    return [f"--reference={path}"] if path else []


def clustering_options(wildcards):
    """Return the thresholds that override those of the model, as key=value."""
    return [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in sorted(config["clustering"].items())
    ]


def cluster_device(wildcards, resources):
    """Return where tiles are labelled: on the CPU, unless a GPU is asked for with `set-resources`."""
    has_gpu = "gpu" in str(resources.get("gres", "")) or resources.get("gpu", 0)
    return config["device"] if has_gpu else "cpu"


def run_results(wildcards):
    """Return what a whole run makes."""
    if not IMAGES:
        return []
    # All of it by name, so that a deleted file is made again.
    files = "{image}.ome.zarr objects.csv objects.parquet seams.csv metrics.json"
    files += " provenance.json report.html steps/complete.json"
    files = [
        *files.split(),
        *(f"exports/{{image}}.{EXPORTS[name]}" for name in config["exports"]),
    ]
    of_images = [f"results/{{image}}/{file}" for file in files]
    of_run = ["summary.csv", "summary.html", "ro-crate-metadata.json"]
    return [*(f"results/{file}" for file in of_run), *per_image(of_images)]


def export_format(wildcards):
    """Return the format of a file for another program."""
    return {suffix: name for name, suffix in EXPORTS.items()}[wildcards.suffix]


def kept_until_complete(wildcards):
    """Return what comes between the steps of an image, while it has not all of its tiles.

    As inputs of its last job they stay as long as that fails; and the records, so that a batch
    without one is redone. Later nothing needs them.
    """
    steps = f"results/{wildcards.image}/steps"
    if Path(f"{steps}/complete.json").exists():
        return []
    ends = ("zarr", "parquet", "sightings.parquet", "contacts.parquet")
    files = ["outputs/{batch}.zarr", *(f"labels/{{batch}}.{end}" for end in ends)]
    files += ["records/infer-{batch}.json", "records/cluster-{batch}.json"]
    found = [per_batch(f"results/{{image}}/steps/{file}")(wildcards) for file in files]
    return [f"{steps}/image.zarr", *itertools.chain.from_iterable(found)]


def per_image(pattern):
    """Return a file, or several, of every image, in the order of the table."""
    return expand(pattern, image=IMAGES)


def table_path():
    """Return the table of images, or nothing."""
    return PLAN["table"] or []


def training_table(wildcards):
    """Return the table of `snakemake train`."""
    if config["training"]["table"] is None:
        raise WorkflowError(
            "config, training.table: needs a table of images with references"
        )
    return config["training"]["table"]


def training_start(wildcards):
    """Return the model that `snakemake train` starts from, or nothing."""
    return PLAN["start"] or []


def start_option(wildcards):
    """Return the option that names the model to start from, or nothing."""
    return [f"--start={PLAN['start']}"] if PLAN["start"] else []


def ablation_row(name):
    """Return a row of the ablation."""
    if name not in ABLATION:
        raise WorkflowError(
            f"config, ablation.rows: no row '{name}'; needs some of {', '.join(ABLATION)}"
        )
    return ABLATION[name]


def ablation_table():
    """Return the table of images of the ablation, or nothing when they are drawn."""
    return config["ablation"]["table"] or []


def ablation_table_option():
    """Return the option that names the table of images of the ablation, or nothing."""
    table = config["ablation"]["table"]
    return [f"--table={table}"] if table else []


def ablation_options(wildcards):
    """Return the options of a training of the ablation."""
    return ablation_row(wildcards.trained)["options"].split()


def ablation_model(suffix):
    """Return a function for a file of the training that a row scores, maybe another row's."""

    def path(wildcards):
        trained = ablation_row(wildcards.row)["trained_as"]
        return f"results/ablation/models/{trained}-{wildcards.seed}.{suffix}"

    return path


def ablation_clustering(wildcards):
    """Return the clustering of a row of the ablation."""
    return ablation_row(wildcards.row)["clustering"]


def ablation_links(wildcards):
    """Return the option that scores the identity vectors, too, or nothing."""
    return ["--links"] if ablation_row(wildcards.row)["links"] else []


def ablation_files(pattern):
    """Return a function that lists a file of every row and seed of the ablation."""

    def paths(wildcards):
        section = config["ablation"]
        rows = [ablation_row(str(row))["row"] for row in section["rows"]]
        return expand(pattern, row=rows, seed=range(section["seeds"]))

    return paths


def is_finished(image):
    """Tell whether page and exports of an image exist and no step has run on it since."""
    page = Path(f"results/{image}/report.html")
    exports = [
        Path(f"results/{image}/exports/{image}.{EXPORTS[name]}")
        for name in config["exports"]
    ]
    logs = [
        log
        for name in ("tile", "infer", "cluster", "number", "paint", "stitch", "measure")
        for log in [
            *Path("logs", name).glob(f"{image}.log"),
            *Path("logs", name, image).glob("*.log"),
        ]
    ]
    there = all(path.is_file() for path in (page, *exports))
    return there and all(
        log.stat().st_mtime_ns <= page.stat().st_mtime_ns for log in logs
    )


def keep_pages():
    """Give pages of images without some tiles their name; Snakemake removed what had failed."""
    for image in IMAGES:
        page = Path(f"results/{image}/steps/unfinished.html")
        if page.is_file():
            page.replace(f"results/{image}/report.html")


def forget_failed_tiles():
    """Remove the records of batches with tiles that failed, so that the next run redoes these."""
    for image in IMAGES:
        try:
            metrics = json.loads(Path(f"results/{image}/metrics.json").read_text())
            failed = metrics["failed_tiles"] if is_finished(image) else []
            batches = {(one["stage"], one["batch"]) for one in failed}
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for stage, batch in batches:
            record = Path(f"results/{image}/steps/records/{stage}-{batch}.json")
            record.unlink(missing_ok=True)


def summarize_failed_run():
    """Write the table and the page of a run in which something failed; never raise."""
    if not IMAGES:
        return
    keep_pages()
    # Results of an earlier run may lie about an image that failed in this one.
    failed = Path(".snakemake/iaunet/failed.json")
    failed.write_text(
        json.dumps({image: "" for image in IMAGES if not is_finished(image)})
    )
    command = [sys.executable, step("summarize.py"), f"--table={PLAN['table']}"]
    command += ["--results", "results", "--logs", "logs", "--failures", str(failed)]
    command += [f"--model={config['model']}", f"--expanded={EXPANDED}"]
    command += [
        "--output-csv",
        "results/summary.csv",
        "--output-html",
        "results/summary.html",
    ]
    crate = [sys.executable, step("crate.py"), f"--table={PLAN['table']}"]
    crate += ["--summary", "results/summary.csv", f"--config={run_config()}"]
    crate += [f"--snakefile={workflow_file()}", "--results", "results"]
    crate += ["--parts", "results/ro-crate", f"--expanded={EXPANDED}"]
    crate += ["--output", "results/ro-crate-metadata.json"]
    said = []
    for words in (command, crate):
        result = subprocess.run(words, capture_output=True, text=True)
        said.append(result.stderr)
        if result.returncode != 0:
            logger.error(f"No summary of the unfinished run:\n{result.stderr}")
            break
    forget_failed_tiles()
    logger.error(said[0])
    logger.error(
        "Not everything is finished: results/summary.csv says what and why. "
        "The same command goes on where this run stopped, and redoes the batches of tiles "
        "that failed."
    )
