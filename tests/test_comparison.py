"""Peers are fitted and scored on the same images, with the same metric, as our own network."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile

import annotated
import compare
import evaluate
import fitting
import otsu_watershed
import peers
import train
from iaunet import metrics, recipes, synthetic
from iaunet.errors import InputError, OptionError
from runs import REPOSITORY

FOLDER = REPOSITORY / "comparison"


def pins(path):
    found = (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in path.read_text().splitlines())
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}


@pytest.fixture(scope="module")
def drawn():
    """Three drawn images with their labels."""
    rng = np.random.default_rng(0)
    return [synthetic.draw_nuclei((96, 112), rng, diameter_px=16) for _ in range(3)]


@pytest.fixture
def table(drawn, tmp_path):
    """A table of the drawn images: two to train with, one to validate with."""
    rows = ["image,path,reference,group,split"]
    for k, (image, labels) in enumerate(drawn):
        tifffile.imwrite(tmp_path / f"{k}.tif", image)
        tifffile.imwrite(tmp_path / f"{k}-mask.tif", labels)
        rows.append(f"i{k},{k}.tif,{k}-mask.tif,g{k},{'validation' if k == 2 else 'train'}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "table.csv"


def run_peer(name, table, choose_on="train", **more):
    out = table.parent / name
    options = {"peer": name, "table": table, "choose-on": choose_on, "output": out}
    options |= {"work": table.parent / "work", "max-minutes": 0.02, "threads": 1, "seed": 1}
    peers.main([f"--{key}={value}" for key, value in (options | more).items()])
    return out


def predictions(folder, labels):
    """Write labels as the prediction of the validation image."""
    folder.mkdir()
    tifffile.imwrite(folder / "i2.tif", labels)
    return folder


def run_compare(table, folders, *more):
    out = table.parent / "tables"
    named = [f"{name}={folder}" for name, folder in folders.items()]
    compare.main(
        ["--table", str(table), "--predicted", *named, "--output", str(out), *map(str, more)]
    )
    return out


def test_requirements_are_pinned_once_and_never_differ_from_those_of_the_workflow():
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith(("#", "-c"))]
    ours = pins(REPOSITORY / "requirements.txt") | pins(REPOSITORY / "constraints.txt")
    theirs = pins(FOLDER / "requirements.txt")
    assert len(theirs) == len(wanted)
    assert {name: theirs[name] for name in theirs.keys() & ours} == {
        name: ours[name] for name in theirs.keys() & ours
    }
    assert {"stardist", "csbdeep", "tensorflow-cpu", "numpy"} <= theirs.keys()


def test_the_commands_find_the_library_and_answer_help():
    for name in ("peers.py", "compare.py"):
        command = [sys.executable, str(FOLDER / name), "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "--table" in text.stdout


def test_otsu_and_watershed_find_drawn_nuclei_through_the_command_line(table, drawn):
    out = run_peer("otsu-watershed", table)
    found = tifffile.imread(out / "i2.tif")
    assert [path.name for path in sorted(out.glob("*.tif"))] == ["i2.tif"]
    assert metrics.accuracy(metrics.overlap(drawn[2][1], found))["ap50"] >= 0.5
    facts = json.loads((out / "peer.json").read_text())
    assert facts["choose_on"] == "train"
    assert facts["tuned_on"] == facts["n_train"] == 2
    assert set(facts["settings"]) == set(otsu_watershed.GRID)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_has_no_objects(value):
    image = np.full((40, 50), value, np.uint8)
    assert not otsu_watershed.segment(image, **otsu_watershed.START).any()


def test_a_small_piece_beside_a_large_one_is_an_object():
    image = np.zeros((40, 60), np.uint8)
    image[10:30, 10:30] = image[18:22, 34:38] = 200
    found = otsu_watershed.segment(image, sigma=0.1, factor=1.0, min_distance=14, min_size=4)
    assert found.max() == len(np.unique(found)) - 1 == 2
    assert len(np.unique(found[18:22, 34:38])) == 1


def test_the_search_climbs_until_no_setting_improves():
    def score(settings):
        return -abs(settings["a"] - settings["b"]) - abs(settings["b"] - 3)

    grid = {"a": range(5), "b": range(5)}
    settings, best = fitting.best_settings(lambda s: 9 + score(s), {"a": 2, "b": 2}, grid)
    assert score(settings) + 9 == best
    assert settings["a"] == settings["b"]


def test_the_three_class_network_segments_after_a_short_training(table, monkeypatch):
    plain = dataclasses.replace(recipes.AUGMENTATION[2], zoom=(0.8, 1.2), small_px=0)
    monkeypatch.setattr(recipes, "CROP", {2: (64, 64)})
    monkeypatch.setattr(recipes, "PAIRS", {2: 1})
    monkeypatch.setattr(recipes, "AUGMENTATION", {2: plain})
    out = run_peer("unet3", table, "validation")
    assert tifffile.imread(out / "i2.tif").shape == (96, 112)
    facts = json.loads((out / "peer.json").read_text())
    assert facts["steps"] >= facts["best_step"] >= 1
    assert set(facts["settings"]) == {"inside", "foreground", "min_size"}


def test_the_three_class_network_sees_images_scaled_as_ours_does():
    assert peers.peer_named("unet3").PERCENTILES == train.PERCENTILES


def test_insides_grow_to_the_end_of_the_foreground_and_do_not_merge():
    probability = np.zeros((2, 9, 20), np.float32)
    probability[0, 2:7, 2:9] = probability[0, 2:7, 11:18] = 0.9  # two insides
    probability[1, 1:8, 1:19] = 0.9 - probability[0, 1:8, 1:19]  # the outline around and between
    unet3 = peers.peer_named("unet3")
    labels = unet3.instances(probability, inside=0.5, foreground=0.5, min_size=1)
    assert labels.max() == 2
    assert (labels > 0).sum() == 7 * 18
    assert len(np.unique(labels[2:7, 2:9])) == len(np.unique(labels[2:7, 11:18])) == 1


def test_a_peer_without_its_packages_says_where_they_are(monkeypatch):
    monkeypatch.setitem(sys.modules, "star_dist", None)
    with pytest.raises(InputError, match=r"needs the package .* comparison/README\.md"):
        peers.peer_named("stardist")


@pytest.mark.parametrize("option", [{"max-minutes": 0}, {"threads": 0}])
def test_a_budget_of_nothing_is_a_wrong_option(table, option):
    with pytest.raises(OptionError, match="need to be above 0"):
        run_peer("otsu-watershed", table, **option)


BAD_TABLES = [
    ("../x,0.tif,0-mask.tif,", "needs a name of letters"),
    ("a,0.tif,0-mask.tif,\na,1.tif,1-mask.tif,", "that stands once"),
    ("a,0.tif,0-mask.tif,train", "no image for validation"),
    ("a,3d.tif,3d.tif,train", "peers need 2D images"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_TABLES)
def test_a_bad_table_says_what_is_wrong(table, rows, message):
    volume = np.ones((5, 20, 20), np.uint8)
    tifffile.imwrite(table.parent / "3d.tif", volume, imagej=True, metadata={"axes": "ZYX"})
    table.write_text(f"image,path,reference,split\n{rows}\n")
    with pytest.raises(InputError, match=message):
        annotated.entries_of(table, "validation")


def test_the_truth_scores_1_and_nothing_scores_0(table, drawn, tmp_path, capsys):
    true = drawn[2][1]
    folders = {
        "truth": predictions(tmp_path / "t", true),
        "nothing": predictions(tmp_path / "n", np.zeros_like(true)),
    }
    out = run_compare(table, folders, "--worst-png", tmp_path / "worst.png")
    scores = pd.read_csv(out / "scores.csv").set_index("method")
    assert (scores.loc["truth", list(compare.SCORES)] == 1).all()
    assert (scores.loc["nothing", list(compare.SCORES)] == 0).all()
    assert scores.loc["nothing", "ap50_gain"] == 1
    printed = capsys.readouterr().out
    assert printed == (out / "comparison.md").read_text()
    assert "| truth | 1.000 |" in printed
    assert (out / "comparison.svg").read_text().count("<svg") == 1
    assert (tmp_path / "worst.png").read_bytes().startswith(b"\x89PNG")


def test_the_bins_of_diameter_hold_every_object_once(drawn):
    true = drawn[2][1]
    predicted = np.roll(true, 4, axis=1) * (true != 3)
    overlaps = [metrics.overlap(true, predicted), metrics.overlap(true, np.zeros_like(true))]
    rows = compare.by_diameter("m", overlaps)
    whole = compare.summary(overlaps)
    for name in ("n_true", "tp_50", "fp_50", "fn_50"):
        assert sum(row[name] for row in rows) == whole[name]
    assert whole["fp_50"] > 0


def test_an_object_is_in_the_bin_that_its_diameter_starts():
    areas = np.pi / 4 * np.array([1, 7.9, 8.1, 11.9, 12.1, 18.1, 29.9, 30.1, 500]) ** 2
    assert compare.in_bins(areas).tolist() == [2, 2, 1, 2, 2]


def test_a_method_gains_nothing_over_itself_and_its_scores_are_those_of_evaluate(drawn):
    overlaps = [metrics.overlap(labels, np.roll(labels, 3, 0)) for _, labels in drawn]
    same = compare.differences(overlaps, overlaps, ["a", "b", "b"])
    assert set(same.values()) == {0.0}
    empty = [metrics.overlap(labels, np.zeros_like(labels)) for _, labels in drawn]
    gain = compare.differences(overlaps, empty, ["a", "b", "b"])
    found = evaluate.together([metrics.accuracy(o) for o in overlaps], compare.counts_of(overlaps))
    assert gain["ap50_gain"] == pytest.approx(found["ap50_pooled"])
    assert gain["ap_mean_gain"] == pytest.approx(found["ap_mean_pooled"])
    assert gain["ap50_gain_low"] <= gain["ap50_gain"] <= gain["ap50_gain_high"]


def test_labels_of_a_run_of_the_workflow_are_found(tmp_path):
    store = tmp_path / "i2" / "i2.ome.zarr"
    store.mkdir(parents=True)
    assert compare.labels_path(tmp_path, "i2") == store
    with pytest.raises(InputError, match=r"no i3\.tif and no i3/i3\.ome\.zarr"):
        compare.labels_path(tmp_path, "i3")


@pytest.mark.parametrize("named", [["a"], ["a=x", "a=y"], ["=x"]])
def test_predictions_need_a_name_and_a_folder(named):
    with pytest.raises(OptionError, match="NAME=FOLDER"):
        compare.parse_args(["--table", "t", "--output", "o", "--predicted", *named])
