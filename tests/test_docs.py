"""The pages say what is: their commands work, their columns and messages are those of the code."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

import measure
import pages
import plan
import reconcile
import stitch
import summarize
from iaunet import cost, features, identity, joining, metrics, seams, synthetic, tables
from iaunet import reconcile as reconciling
from pages import DOCS, PAGES, WrongCommand
from runs import REPOSITORY

TUTORIAL = DOCS / "tutorial.md"
RUNNING = [path for path in PAGES if any(kind == pages.RUN for kind, _ in pages.blocks(path))]
CODE = [
    *REPOSITORY.glob("workflow/scripts/**/*.py"),
    *REPOSITORY.glob("workflow/**/*.yaml"),
    *REPOSITORY.glob("workflow/rules/*.smk"),
]


def name_of(path):
    return str(path.relative_to(REPOSITORY))


def clone(folder):
    """Make what a clone with its environment and demo images has, as far as commands need it."""
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / "resources/demo").mkdir(parents=True)
    for name in ("images.csv", "ablation.csv"):
        shutil.copy(REPOSITORY / "resources" / name, folder / "resources")
    # Links, so that what numba compiled is found again.
    for name in ("workflow", "profiles", "envs", "resources/models"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / ".venv").symlink_to(sys.prefix)
    rng = np.random.default_rng(1)
    shapes = {"nuclei": (512, 512), "mosaic": (64, 64), "empty": (64, 64), "volume": (8, 64, 64)}
    for name, shape in shapes.items():
        image, labels = synthetic.draw_nuclei(shape, rng, diameter_px=24)
        tifffile.imwrite(folder / f"resources/demo/{name}.tif", image)
        tifffile.imwrite(folder / f"resources/demo/{name}_mask.tif", labels.astype(np.uint16))
    return folder


def follow(page, folder):
    """Run the blocks of a page, in order, as somebody who types them."""
    for kind, text in pages.blocks(page):
        if kind == pages.RUN:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=600,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return folder


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """Return the folder in which the tutorial was followed."""
    return follow(TUTORIAL, clone(tmp_path_factory.mktemp("tutorial")))


def test_what_the_tutorial_says_is_there(tutorial):
    page = TUTORIAL.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(RUN/\S+?\.(?:html|csv|zarr|yaml))`", page)):
        assert (tutorial / name).exists(), name
    assert json.loads((tutorial / "RUN/scores.json").read_text())["ap50"] > 0.5


@pytest.mark.parametrize("page", [path for path in RUNNING if path != TUTORIAL], ids=name_of)
def test_the_commands_of_a_page_work_as_they_stand(page, tmp_path):
    folder = follow(page, clone(tmp_path))
    if page.stem == "reconcile":
        assert json.loads((folder / "scores.json").read_text())["ap_mean"] == 1


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_other_commands_have_scripts_and_options_that_exist(page):
    for kind, text in pages.blocks(page):
        if pages.is_of_commands(kind, text):
            for words in pages.commands(text):
                pages.check(words)


@pytest.mark.parametrize(
    "line",
    [
        "python workflow/scripts/tiel.py --image a.tif",
        "python workflow/scripts/evaluate.py --predicted a.tif --truth b.tif",
        "python workflow/scripts/evaluate.py --predicted a.tif --reference",
        "python workflow/scripts/train.py --tabel t.csv ...",
        "python workflow/scripts/export_labels.py --to xlsx --store a --objects b --output c",
        ".venv/bin/snakemake --cors 2",
        "snakemake trian --cores 2",
        "snakemake --cores 1 --config 'tiling={core: [256, 256]}'",
        "snakemake --profile workflow/profiles/pbs",
        "make set-up",
        "make model MODLE=nuclei-2d",
        "snekmake --cores 1",
    ],
)
def test_a_wrong_command_is_found(line):
    (words,) = pages.commands(line)
    with pytest.raises(WrongCommand):
        pages.check(words)


def test_pages_that_the_code_writes_are_as_it_writes_them(generate):
    for path, text in generate.pages().items():
        there = path.read_text(encoding="utf-8") if path.is_file() else ""
        # Versions of Python break the lines of a usage differently.
        assert there.split() == text.split(), f"{name_of(path)}: run `make docs`"


@pytest.fixture(scope="module")
def generate():
    """Return the module docs/generate.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        import generate

        yield generate


def test_the_site_builds_without_a_warning_or_a_broken_link(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    command += ["-d", tmp_path / "trees", DOCS, tmp_path / "site"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/index.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_to_files(page):
    text = pages.FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link


def first_column(name, only=r"\w+(?:\{\w+\})?"):
    """Return the names in the first column of the tables of a page, `{step}` for every step."""
    text = (DOCS / name).read_text(encoding="utf-8")
    found = set()
    for line in text.splitlines():
        cell = line.split("|")[1] if line.startswith("|") else ""
        for word in re.findall(rf"`({only})`", cell):
            found |= {word.replace("{step}", step) for step in cost.STEPS}
    return found


def test_every_column_of_objects_is_described():
    names = {
        column.replace("_intensity_0", "_intensity_{channel}")
        for ndim in (2, 3)
        for column in features.object_columns(ndim, "0", np.dtype(np.uint8))
    }
    assert first_column("outputs/objects.md") == names | {"class", "class_share"}


def test_every_column_and_verdict_of_seams_is_described():
    judged = "label gid n_tiles tiles n_batches size min_voxels_in_a_core agreement verdict"
    empty = pd.DataFrame({name: [] for name in judged.split()})
    names = set(identity.VERDICTS) | set(joining.VERDICTS)
    for shape in ((1, 1), (1, 1, 1)):
        names |= set(stitch.seam_table(empty, {"shape": shape, "image": "a"}))
    assert first_column("outputs/seams.md") == names


def test_every_key_of_metrics_is_described(tutorial):
    found = json.loads((tutorial / "RUN/results/nuclei/metrics.json").read_text())
    names = {*found, "classes", "verified_windows", "verified_voxels", "verified_differ"}
    names |= set(seams.straight_cuts(np.ones((2, 4), int), (4, 4)))
    names |= set(metrics.accuracy(metrics.overlap(np.ones((2, 2), int), np.ones((2, 2), int))))
    judged = pd.DataFrame({"crosses_seam": [], "verdict": []})
    for size, shape in (("area_px", [9, 9]), ("volume_px", [9, 9, 9])):
        tiles = {"shape": shape, "pixel_um": None, "n_tiles": 1, "n_batches": 1}
        names |= set(measure.counts(pd.DataFrame({size: []}), judged, tiles))
    assert first_column("outputs/metrics.md") == names


def test_every_key_of_provenance_is_described(tutorial):
    found = json.loads((tutorial / "RUN/results/nuclei/provenance.json").read_text())
    of_steps = {key for step in found["steps"] for key in step}
    assert first_column("outputs/provenance.md") == set(found) | of_steps


def test_every_column_of_the_summary_is_described():
    planned = {f"{before}{name}" for name in summarize.PLANNED for before in ("planned_", "")}
    page = (DOCS / "outputs/summary.md").read_text(encoding="utf-8")
    scores = page.partition("follow:")[2].partition(".\n\n")[0]
    assert re.findall(r"`(\w+)`", scores) == list(summarize.ACCURACY)
    assert first_column("outputs/summary.md") == {*summarize.COLUMNS, "reason"} | planned


def test_every_column_of_the_plan_is_described(tutorial):
    with (tutorial / "RUN/results/plan.csv").open(newline="") as file:
        assert first_column("outputs/plan.md") == set(csv.DictReader(file).fieldnames)


def test_every_column_and_verdict_of_links_is_described():
    words = reconciling.LINKED, reconciling.REFUSED, reconciling.KEPT
    words += reconciling.OVERRULED, reconciling.OPEN
    assert first_column("outputs/links.md") == {*reconcile.LINK_COLUMNS, *words}


def test_every_attribute_of_the_store_is_described(tutorial):
    store = tutorial / "RUN/results/nuclei/nuclei.ome.zarr"
    page = (DOCS / "outputs/ome-zarr.md").read_text(encoding="utf-8")
    for group in ("", "labels/instances"):
        attributes = json.loads((store / group / "zarr.json").read_text())["attributes"]
        for key in attributes["iaunet"]:
            assert f"`{key}`" in page, key


@pytest.mark.parametrize("page", ["README.md", "docs/table.md"])
def test_every_column_of_the_table_of_images_is_described(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    table = text.partition("| column | meaning |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert tuple(re.findall(r"`(\w+)`", " ".join(cells))) == tables.IMAGES


def texts_of(path):
    """Return the texts of a file of code; what is filled in is a zero byte."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        found = re.findall(r"description: *\"?(.+?)\"?[,}\n]", source)
        return [*found, *re.findall(r"description: *(.+)", source)]
    if path.suffix == ".smk":
        return [" ".join(re.sub(r'"\s*f?"', "", source).split())]
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = ast.iter_child_nodes(node) if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
        found += ["".join(text if isinstance(text, str) else "" for text in texts)]
    return found


SYSTEM = {"No space left on device"}
"""Messages of the operating system."""


def test_every_message_that_is_explained_can_be_met():
    said = [text for path in CODE for text in texts_of(path)]
    rows = re.findall(
        r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) > 80
    for row in set(rows) - SYSTEM:
        pattern = re.compile(".*".join(map(re.escape, re.split(r" ?… ?", row))), re.DOTALL)
        assert any(pattern.search(text) for text in said), row


def test_modules_that_read_what_users_bring_have_their_messages_explained():
    """Not each one, but no kind of file is left out."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    patterns = [".*".join(map(re.escape, re.split(r" ?… ?", row))) for row in rows]
    for name in ("images", "tiff", "ngff", "vendors", "tables", "labelfiles", "checkpoint"):
        said = "\n".join(texts_of(REPOSITORY / f"workflow/scripts/iaunet/{name}.py"))
        assert any(re.search(pattern, said) for pattern in patterns), name


def test_the_figure_of_exactness_is_drawn(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "figures")
        import exactness
    exactness.main(["--output", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_settings_named_in_pages_exist():
    known = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    for page in PAGES:
        for kind, text in pages.blocks(page):
            if kind == "yaml" and "iaunet:" not in text:
                given = yaml.safe_load(text)
                schema = pages.Schema(REPOSITORY / "workflow/schemas/config.schema.yaml")
                assert list(schema.problems(plan.merged(known, given))) == [], name_of(page)
