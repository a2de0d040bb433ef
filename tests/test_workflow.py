"""The real Snakefile: dry runs in this process, and small images from start to end."""

import csv
import json
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter

import numpy as np
import psutil
import pytest
import tifffile
from rocrate.rocrate import ROCrate
from snakemake.api import SnakemakeApi
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)

import plan
from iaunet import checkpoint, checksums, grid, synthetic
from nets import save_model
from runs import REPOSITORY, write_header_model, write_image, write_table

SNAKEFILE = REPOSITORY / "Snakefile"
SHIPPED = REPOSITORY / "resources/models/nuclei-2d.safetensors"
STEPS = ("tile", "infer", "cluster", "stitch", "measure", "report")
ODD_NAME = 'it\'s $(touch pwned) "a";\n&.tif'


@pytest.fixture
def folder(tmp_path):
    """Return a run folder with three images, the second in four tiles."""
    write_header_model(tmp_path / "m2.safetensors")
    for name, shape in (("a", (50, 60)), ("b", (100, 120)), ("c", (10, 10))):
        write_image(tmp_path / f"{name}.tif", shape)
    write_table(tmp_path / "images.csv", [{"image": k, "path": f"{k}.tif"} for k in "abc"])
    (tmp_path / "config.yaml").write_text("images: images.csv\nmodel: ./m2.safetensors\n")
    return tmp_path


def dry_run(folder, targets=(), **config):
    """Return how many jobs of each rule a run would have."""
    before = os.environ["PATH"]
    try:
        with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(config=config),
                snakefile=SNAKEFILE,
                workdir=folder,
            )
            dag = workflow.dag(DAGSettings(targets=set(targets)))
            dag.execute_workflow(executor="dryrun")
            return Counter(job.rule.name for job in workflow._workflow.dag.jobs)
    finally:
        os.environ["PATH"] = before


def snakemake(folder, *options, env=None):
    """Run the command as a user does; return the finished process."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), *options]
    return subprocess.run(
        [*command, "--cores", "2"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


def killed(folder, when):
    """Start a run and kill Snakemake, and nothing else, once a path exists; return its output."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE), "--cores", "1"]
    with (folder / "killed.log").open("w") as log:
        run = subprocess.Popen(command, cwd=folder, stderr=log, stdout=log)
        deadline = time.monotonic() + 300
        while not list(folder.glob(when)):
            assert run.poll() is None, (folder / "killed.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.kill()
        run.wait()


@pytest.mark.parametrize(("images", "n_threads"), [("a", 2), ("abc", 1)])
def test_cores_that_would_idle_work_on_the_batches_there_are(images, n_threads, folder):
    write_table(folder / "images.csv", [{"image": k, "path": f"{k}.tif"} for k in images])
    said = snakemake(folder, "--dry-run").stdout
    assert said.count("rule infer:") == said.count("rule cluster:") == len(images)
    assert said.count("threads: 2") == (2 * len(images) if n_threads == 2 else 0)


@pytest.mark.parametrize(
    ("more", "device"),
    [
        ([], "cpu"),
        (["--set-resources", "infer:gpu=1"], "cpu"),
        (["--set-resources", "cluster:gpu=1"], "cuda:0"),
        (["--set-resources", "cluster:gres='gpu:1'"], "cuda:0"),
    ],
)
def test_tiles_are_labelled_on_the_gpu_that_their_jobs_ask_for_else_on_the_cpu(
    more, device, folder
):
    write_table(folder / "images.csv", [{"image": "a", "path": "a.tif"}])
    options = ["--dry-run", "--printshellcmds", *more, "--config", "device=cuda:0"]
    commands = snakemake(folder, *options).stdout.splitlines()
    (labelling,) = [line for line in commands if "cluster.py --tiles" in line]
    assert f"--device {device} " in labelling


def rows(path):
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_an_image_has_two_jobs_per_batch_and_four_more(folder):
    jobs = dry_run(folder, tiling={"tiles_per_batch": 1})
    assert jobs["infer"] == jobs["cluster"] == 1 + 4 + 1
    assert all(jobs[rule] == 3 for rule in ("tile", "stitch", "measure", "report"))
    assert jobs["summarize"] == jobs["crate"] == jobs["all"] == 1
    assert sum(jobs.values()) == 2 * 6 + 4 * 3 + 3


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tiling": {"core_px": [32, 32], "tiles_per_batch": 2}},
        {"tiling": {"tiles_per_batch": 1}, "stitching": {"jobs": 3}},
    ],
)
def test_the_plan_has_the_jobs_and_batches_of_a_dry_run(folder, monkeypatch, more):
    monkeypatch.chdir(folder)
    assert dry_run(folder, ["plan"]) == {"plan": 1}
    jobs = dry_run(folder, **more)
    config = {"images": "images.csv", "model": "./m2.safetensors", **more}
    (folder / "own.yaml").write_text(json.dumps(config))
    plan.main(["--config", "own.yaml", "--no-calibrate"])
    planned = rows(folder / "results/plan.csv")
    assert sum(int(row["batches"]) for row in planned.values()) == jobs["infer"]
    n_jobs = sum(int(row["jobs"]) for row in planned.values()) + plan.RUN_JOBS
    assert n_jobs == sum(jobs.values()) - jobs["all"]
    tiled = {row["image"]: int(row["tiles"]) for row in planned.values()}
    core = more.get("tiling", {}).get("core_px", [64, 64])
    shapes = {"a": (50, 60), "b": (100, 120), "c": (10, 10)}
    assert tiled == {name: grid.n_tiles(shape, core) for name, shape in shapes.items()}


def test_part_of_a_section_is_merged_with_the_defaults(folder):
    # Texts, as the command line hands them over.
    jobs = dry_run(folder, tiling={"core_px": ["32", "32"], "tiles_per_batch": "2"})
    assert jobs["infer"] == 2 + 8 + 1


def test_every_image_is_exported_in_every_format_that_is_asked_for(folder):
    assert dry_run(folder, exports=["geojson", "ome-tiff"])["export_labels"] == 2 * 3
    assert "export_labels" not in dry_run(folder)


def test_a_wrong_config_stops_before_the_jobs_with_all_reasons(folder):
    write_table(folder / "images.csv", [{"image": "../x", "path": "no.tif"}])
    with pytest.raises(WorkflowError) as caught:
        dry_run(folder, modle="x")
    for part in ("did you mean 'model'?", "column image", "column path"):
        assert part in str(caught.value)


def test_an_unknown_image_is_named(folder):
    with pytest.raises(WorkflowError, match=r"no image 'z' in images\.csv"):
        dry_run(folder, ["results/z/report.html"])


def test_a_killed_run_goes_on_with_the_same_command_to_the_same_bytes(tmp_path):
    rng = np.random.default_rng(4)
    image, _ = synthetic.draw_nuclei((200, 180), rng, diameter_px=22)
    folders = [tmp_path / "killed", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
        tifffile.imwrite(folder / "a.tif", image)
        write_table(folder / "images.csv", [{"image": "a", "path": "a.tif"}])
        tiling = "tiling: {core_px: [96, 96], tiles_per_batch: 2}\n"
        config = f"images: images.csv\nmodel: {SHIPPED}\ndiameter_px: native\n{tiling}"
        (folder / "config.yaml").write_text(config)
    for when in ("results/a/steps/tiles.json", "logs/infer/a/1.log", "logs/stitch/a.log"):
        killed(folders[0], when)
        assert (folders[0] / ".snakemake/locks").is_dir()
    for folder in folders:
        done = snakemake(folder)
        assert done.returncode == 0, done.stderr
    assert "was killed; going on" in (folders[0] / "killed.log").read_text()
    found = [
        {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.glob("results/a/**/*"))
            if path.is_file() and ("ome.zarr" in str(path) or path.suffix in (".csv", ".parquet"))
        }
        for folder in folders
    ]
    found = [{k: v for k, v in one.items() if ".snakemake" not in k} for one in found]
    assert found[0].keys() == found[1].keys()
    for name, content in found[0].items():
        assert content == found[1][name], name


def test_the_locks_of_a_run_that_lives_or_is_elsewhere_stay(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(SHIPPED.read_bytes())
    write_image(tmp_path / "a.tif", (70, 90))
    write_table(tmp_path / "images.csv", [{"image": "a", "path": "a.tif"}])
    (tmp_path / "config.yaml").write_text("images: images.csv\nmodel: ./m.safetensors\n")
    killed(tmp_path, "results/a/steps/tiles.json")
    noted = tmp_path / ".snakemake/iaunet/running.json"
    dead = json.loads(noted.read_text())
    began = psutil.Process().create_time()
    for other, advice in (
        ({"host": "another"}, "once with --unlock"),
        ({"pid": os.getpid(), "began": began}, f"end it with: kill -INT {os.getpid()}"),
    ):
        noted.write_text(json.dumps(dead | other))
        refused = snakemake(tmp_path)
        assert refused.returncode != 0
        (told,) = [line for line in refused.stderr.splitlines() if "error:" in line]
        run = dead | other
        assert f"locked by the run of process {run['pid']} on {run['host']}, begun 20" in told
        assert told.endswith(advice)
    # The number went to another process meanwhile.
    noted.write_text(json.dumps(dead | {"pid": os.getpid(), "began": began - 1000}))
    assert snakemake(tmp_path).returncode == 0


def test_training_starts_from_a_known_model_only(folder):
    training = {"table": "images.csv", "start": "nuclei-2d"}
    assert dry_run(folder, ["train"], training=training) == {"train": 1}
    with pytest.raises(WorkflowError, match=r"training\.start: model 'nuclei-9d'"):
        dry_run(folder, ["train"], training=training | {"start": "nuclei-9d"})


def test_training_needs_a_table(folder):
    with pytest.raises(WorkflowError, match="needs a table of images with references"):
        dry_run(folder, ["train"])
    assert dry_run(folder, ["train"], training={"table": "images.csv"}) == {"train": 1}


def test_an_ablation_has_one_training_per_seed_and_row_but_those_that_share_one(folder):
    jobs = dry_run(folder, ["ablation"], ablation={"rows": [4, 7, "7a", 8], "seeds": 2})
    assert jobs == {
        "ablation": 1,
        "ablation_images": 1,
        "ablation_train": 3 * 2,  # row 8 is the network of row 7
        "ablation_score": 4 * 2,
    }
    with pytest.raises(WorkflowError, match=r"ablation\.rows: no row '99'; needs some of 0, 1"):
        dry_run(folder, ["ablation"], ablation={"rows": [99]})


def test_a_changed_input_is_checked_again(folder):
    assert dry_run(folder)["infer"] == 3
    (folder / "b.tif").unlink()
    with pytest.raises(WorkflowError, match=r"no such file 'b\.tif'"):
        dry_run(folder)


def test_two_hundred_images_are_planned_without_a_batch_too_many(folder):
    table = [{"image": f"i{k}", "path": "a.tif"} for k in range(200)]
    write_table(folder / "images.csv", table)
    assert sum(dry_run(folder).values()) == 200 * 6 + 3


def test_the_linter_finds_nothing(folder):
    found = snakemake(folder, "--lint")
    assert found.returncode == 0, found.stdout + found.stderr


def check_report(folder):
    """Make Snakemake's report of a run with a plan; all of it is there, with captions."""
    words = ["--directory", folder, "--config", folder / "config.yaml", "--no-calibrate"]
    plan.main([*map(str, words), "--output", str(folder / "results/plan.csv")])
    made = snakemake(folder, "all", "plan", "--report", "report.zip")
    assert made.returncode == 0, made.stderr
    of_run = {"page": "summary.html", "table": "summary.csv", "plan": "plan.csv"}
    of_image = {"page": "report.html", "objects": "objects.csv", "seams": "seams.csv"}
    of_image |= {"metrics": "metrics.json", "provenance": "provenance.json"}
    expected = {("Run", "", "all", what): f"results/{name}" for what, name in of_run.items()}
    for image in rows(folder / "images.csv"):
        named = {what: f"results/{image}/{name}" for what, name in of_image.items()}
        expected |= {("Images", image, image, what): name for what, name in named.items()}
    with zipfile.ZipFile(folder / "report.zip") as archive:
        page = archive.read("report/report.html").decode()
        shown = json.JSONDecoder().raw_decode(
            page, page.index('{"', page.index('var results = {"'))
        )[0]
        tree = json.JSONDecoder().raw_decode(
            page, page.index('{"', page.index('var categories = {"'))
        )[0]
        for (category, sub, image, what), path in expected.items():
            entry = shown[path]
            assert path in tree[category][sub or "Other"]
            assert entry["labels"] == {"image": image, "what": what}
            assert entry["caption"]
            assert archive.read(f"report/{entry['data_uri']}") == (folder / path).read_bytes()
    assert set(shown) == set(expected.values())


def test_one_bad_image_does_not_stop_the_others_and_is_redone_alone(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(SHIPPED.read_bytes())
    good = write_image(tmp_path / ODD_NAME, (70, 90)).read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(good[: len(good) // 2])
    table = [{"image": "odd", "path": ODD_NAME}, {"image": "cut", "path": cut.name}]
    write_table(tmp_path / "images.csv", table)
    stitching = "stitching: {verify_windows: 1, jobs: 2}\n"
    config = "images: images.csv\nmodel: ./m.safetensors\n" + stitching
    (tmp_path / "config.yaml").write_text(config)

    first = snakemake(tmp_path)
    assert first.returncode != 0
    found = rows(tmp_path / "results/summary.csv")
    assert found["odd"]["status"] == "ok", first.stderr
    assert found["cut"]["status"] == "failed"
    assert "truncated" in found["cut"]["reason"]
    assert not (tmp_path / "pwned").exists()
    provenance = (tmp_path / "results/odd/provenance.json").read_bytes()

    cut.write_bytes(good)
    second = snakemake(tmp_path)
    assert second.returncode == 0, second.stderr
    started = [line for line in second.stderr.splitlines() if line.startswith("localrule ")]
    names = Counter(line.split()[1].rstrip(":") for line in started)
    expected = {
        **dict.fromkeys(STEPS, 1),
        "number": 1,
        "paint": 2,
        "summarize": 1,
        "crate": 1,
        "all": 1,
    }
    assert names == expected
    assert (tmp_path / "results/odd/provenance.json").read_bytes() == provenance
    found = rows(tmp_path / "results/summary.csv")
    assert [row["status"] for row in found.values()] == ["ok", "ok"]
    odd, again = (tmp_path / f"results/{name}/objects.csv" for name in ("odd", "cut"))
    assert odd.read_text().replace("odd,", "cut,") == again.read_text()
    assert not list(tmp_path.glob("results/*/steps/**/*.zarr"))
    facts = json.loads((tmp_path / "results/odd/metrics.json").read_text())
    assert [facts[key] for key in ("n_batches", "verified_windows", "verified_differ")] == [1, 1, 0]

    assert "Nothing to be done" in snakemake(tmp_path).stderr
    for file in ("objects.csv", "objects.parquet", "odd.ome.zarr", "report.html"):
        (tmp_path / "results/odd" / file).rename(tmp_path / "aside")
        assert "Nothing to be done" not in snakemake(tmp_path, "--dry-run").stdout, file
        (tmp_path / "aside").rename(tmp_path / "results/odd" / file)
    # What the network saw is gone, and measuring again does not need it.
    again = snakemake(tmp_path, "--dry-run", "--forcerun", "measure")
    started = again.stderr.splitlines() + again.stdout.splitlines()
    names = {line.split()[1].rstrip(":") for line in started if line.startswith("localrule ")}
    rules = {line.split()[1].rstrip(":") for line in started if line.startswith("rule ")}
    assert names | rules == {"measure", "report", "summarize", "crate", "all"}
    check_report(tmp_path)

    # A good image that is replaced by a bad one must not keep the row of its old results.
    cut.write_bytes(good[: len(good) // 2])
    assert snakemake(tmp_path).returncode != 0
    assert rows(tmp_path / "results/summary.csv")["cut"]["status"] == "failed"


def test_a_repeat_from_the_provenance_gives_the_same_bytes(tmp_path, rng):
    """In 2D and 3D, with a channel and a frame, after the run folder was moved."""
    folder = tmp_path / "run"
    folder.mkdir()
    for ndim in (2, 3):
        save_model(folder / f"m{ndim}.safetensors", ndim)
    options = {"photometric": "minisblack"}
    for name, shape, axes in (("flat", (2, 3, 90, 130), "TCYX"), ("deep", (20, 40, 50), "ZYX")):
        image = rng.integers(0, 999, shape).astype(np.uint16)
        tifffile.imwrite(folder / f"{name}.ome.tif", image, metadata={"axes": axes}, **options)
    table = [
        {"image": "flat", "path": "flat.ome.tif", "model": "./m2.safetensors"}
        | {"channel": "1", "frame": "1"},
        {"image": "deep", "path": "deep.ome.tif", "model": "./m3.safetensors"},
    ]
    write_table(folder / "images.csv", table)
    tiling = "tiling: {core_px: [48, 48]}\n"
    (folder / "config.yaml").write_text("images: images.csv\n" + tiling)
    done = snakemake(folder)
    assert done.returncode == 0, done.stderr
    moved = folder.rename(tmp_path / "moved")
    before = {path: path.read_bytes() for path in checksums.files(moved / "results")}
    script = REPOSITORY / "workflow/scripts/rerun.py"
    for name in ("flat", "deep"):
        command = [sys.executable, str(script), f"moved/results/{name}/provenance.json"]
        command += ["--output", f"again/{name}", "--cores", "2"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"results of {name} agree" in done.stdout
    assert {path: path.read_bytes() for path in checksums.files(moved / "results")} == before
    # What the crate names is there.
    found = ROCrate(moved / "results")
    inside = [e for e in found.data_entities if not e.id.startswith("file:")]
    assert len(inside) == 2 * 7 + 2 + 3
    for entity in inside:
        assert entity["sha256"] == checksums.sha256(moved / "results" / entity.id)


def test_a_model_can_be_trained_from_a_table_with_masks(tmp_path):
    rng = np.random.default_rng(1)
    rows_of_table = []
    for name in "ab":
        image, labels = synthetic.draw_nuclei((96, 96), rng, diameter_px=18)
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
        tifffile.imwrite(tmp_path / f"{name}_mask.tif", labels)
        row = {"image": name, "path": f"{name}.tif", "reference": f"{name}_mask.tif"}
        rows_of_table.append(row | {"split": "train" if name == "a" else "validation"})
    write_table(tmp_path / "training.csv", rows_of_table)
    (tmp_path / "config.yaml").write_text(
        "images: null\ntraining: {table: training.csv, name: mine, steps: 1}\n"
    )
    done = snakemake(tmp_path, "train")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results/training"
    assert checkpoint.read_meta(folder / "mine.safetensors")["training"]["steps"] == 1
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        f"mine.{suffix}" for suffix in ("safetensors", "csv", "png", "md", "json")
    }
