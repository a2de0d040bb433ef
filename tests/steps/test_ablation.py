import csv
import json

import numpy as np
import pytest
import tifffile

import ablation_images
import ablation_score
import ablation_table
import train
from iaunet import linking, recipes, synthetic, tuning, ways
from iaunet.errors import InputError
from runs import REPOSITORY


def nuclei(rng):
    return synthetic.draw_nuclei((96, 96), rng, diameter_px=16, coverage=0.3)


@pytest.fixture
def small(monkeypatch):
    """Make few and small images, and short searches."""
    monkeypatch.setattr(ablation_images, "DRAWN", {"train": 2, "validation": 1, "test": 2})
    monkeypatch.setattr(ablation_images, "KINDS", {"nuclei": nuclei})
    short = {name: values[:1] for name, values in tuning.GRID.items()}
    monkeypatch.setattr(tuning, "GRID", {**short, "fg": (0.4, 0.6)})
    monkeypatch.setattr(linking, "OVERLAPS_PX", (0, 4, -2))
    monkeypatch.setattr(recipes, "NET", {2: {"widths": [4, 6, 8], "pools": [[2, 2]] * 2}})
    monkeypatch.setattr(recipes, "PAIRS", {2: 1})


def draw(folder):
    fit, test = folder / "fit.csv", folder / "test.csv"
    options = ["--images", folder / "images", "--fit", fit, "--test", test]
    ablation_images.main([str(word) for word in options])
    return fit, test


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scored(folder, row, clustering, *more, fit, test, options=()):
    model = folder / f"{row}.safetensors"
    fixed = ["--work", folder / f"work-{row}", "--max-minutes", 0, "--max-steps", 2]
    fixed += ["--name", row, "--output", model, "--table", fit, "--threads", 1, "--seed", 0]
    record = folder / f"{row}-record.json"
    fixed += ["--crop-px", 32, 32, "--no-validate", "--record", record, *options]
    train.main([str(word) for word in fixed])
    files = ["--scores", folder / f"{row}.csv", "--facts", folder / f"{row}.json"]
    files += ["--model", model, "--fit", fit, "--test", test, "--clustering", clustering]
    files += ["--row", row, "--seed", 0, "--threads", 1, "--training", record, *more]
    ablation_score.main([str(word) for word in files])
    return folder / f"{row}.csv", folder / f"{row}.json"


def test_two_short_trainings_become_a_table_with_a_verdict(small, tmp_path):
    fit, test = draw(tmp_path)
    four = ["--weights", "triplet=0"]
    done = [
        scored(tmp_path, "4", "local", "--links", fit=fit, test=test, options=four),
        scored(tmp_path, "7", "local", "--links", fit=fit, test=test),
    ]
    table = tmp_path / "rows.csv"
    table.write_text(
        "row,trained_as,clustering,links,against,what,options\n"
        "4,4,local,yes,,no identity,\n7,7,local,yes,4,identity,\n"
    )
    options = ["--rows", table, "--scores", *(csv for csv, _ in done)]
    options += ["--facts", *(facts for _, facts in done)]
    for name in ("csv", "md", "png"):
        options += [f"--output-{name}", tmp_path / f"out.{name}"]
    ablation_table.main([str(word) for word in options])
    found = rows(tmp_path / "out.csv")
    parts = {(row["row"], row["minus"], row["part"], row["measure"]) for row in found}
    assert {("7", "4", part, "map") for part in ("all", "touching", "look-alike")} <= parts
    assert ("7", "", "links", "gain 0-4") in parts
    assert all(float(row["low"]) <= float(row["high"]) for row in found if row["low"])
    text = (tmp_path / "out.md").read_text()
    assert "w_tri" in text
    assert "2 steps" in text
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads(done[0][1].read_text())
    assert facts["training"]["id_gradient"] == 0.1
    assert facts["training"]["crop_px"] == [32, 32]


def test_the_three_parts_share_no_group(tmp_path):
    image = np.arange(64, dtype=np.uint16).reshape(8, 8)
    tifffile.imwrite(tmp_path / "a.tif", image)
    table = tmp_path / "table.csv"
    lines = [f"i{k},a.tif,a.tif,g{k // 2}" for k in range(80)]
    table.write_text("\n".join(["image,path,reference,group", *lines]) + "\n")
    options = ["--table", table, "--images", tmp_path / "no", "--fit", tmp_path / "x/fit.csv"]
    options += ["--test", tmp_path / "x/test.csv"]
    ablation_images.main([str(word) for word in options])
    fit, test = rows(tmp_path / "x/fit.csv"), rows(tmp_path / "x/test.csv")
    assert len(fit) + len(test) == 80
    parts = {(row["group"], row.get("split", "test")) for row in fit + test}
    assert len(parts) == 40
    assert {part for _, part in parts} == {"train", "validation", "test"}
    assert test[0]["path"] == "../a.tif"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,a.tif,,train"], "row 2: no reference"),
        (["a,a.tif,a.tif,training"], "row 2: split is 'training', needs train, validation or test"),
        (["a,a.tif,a.tif,train", "b,a.tif,a.tif,test"], "no image left for the part 'validation'"),
    ],
)
def test_a_table_that_cannot_be_split_is_named(tmp_path, lines, message):
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["image,path,reference,split", *lines]) + "\n")
    options = ["--table", table, "--images", tmp_path / "no", "--fit", tmp_path / "fit.csv"]
    with pytest.raises(InputError, match=message):
        ablation_images.main([str(word) for word in [*options, "--test", tmp_path / "test.csv"]])


def test_trainings_that_were_not_equal_are_not_compared(tmp_path):
    facts = {"row": "4", "seed": 0, "settings": {}, "clustering": "local", "validation": 0.5}
    training = {"steps": 10, "crop_px": [8, 8], "crops_per_step": 2, "data_sha256": "x"}
    other = {**facts, "row": "7", "training": {**training, "steps": 11}}
    with pytest.raises(InputError, match=r"row 7, seed 0: steps 11, .* row 4, seed 0: 10"):
        ablation_table.check_equal([{**facts, "training": training}, other])


def test_every_row_is_one_that_trainings_and_scores_know():
    known = rows(REPOSITORY / "resources/ablation.csv")
    by_name = {row["row"]: row for row in known}
    assert len(by_name) == len(known)
    needed = "--name m --output m --work w --max-minutes 0 --max-steps 1 --seed 0 --threads 1"
    for row in known:
        args = train.parse_args([*row["options"].split(), *needed.split()])
        weights = recipes.weights_of(args.weights)
        assert by_name[row["trained_as"]]["options"] == row["options"]
        assert row["clustering"] in ways.WAYS
        assert set(row["against"].split()) <= set(by_name)
        assert bool(weights["discriminative"]) == (row["clustering"] == "meanshift")
        assert bool(weights["triplet"]) or row["row"] in "01234"
    assert train.parse_args(needed.split()).id_gradient == 0.1, "row 7b is row 7"
