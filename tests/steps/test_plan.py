"""The plan is that of the workflow, and rests on one tile that was really segmented."""

import csv
import json

import numpy as np
import pytest
import tifffile

import plan
from iaunet import checksums
from iaunet.errors import InputError
from nets import save_model
from runs import write_header_model, write_image, write_table


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a run folder, which is not the working directory."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("images: images.csv\nmodel: ./m.safetensors\n")
    return run


def rows(folder, *options):
    """Return the rows of a plan."""
    plan.main(["--directory", str(folder), *options])
    with (folder / "results/plan.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_tile_is_segmented_and_nothing_of_the_run_is_touched(folder, capsys, ndim, rng):
    shape = (130, 150) if ndim == 2 else (20, 70, 66)
    axes = {"metadata": {"axes": "TYX" if ndim == 2 else "TZYX"}}
    image = rng.integers(0, 999, (2, *shape)).astype(np.uint16)
    tifffile.imwrite(folder / "a.ome.tif", image, photometric="minisblack", **axes)
    save_model(folder / "m.safetensors", ndim)
    write_table(folder / "images.csv", [{"image": "a", "path": "a.ome.tif", "frame": "1"}])
    before = {path.name: checksums.sha256(path) for path in folder.iterdir()}
    (row,) = rows(folder)
    text = capsys.readouterr().out
    assert row["rates"] == "one tile"
    assert row["jobs"] == "6"
    assert "1 images, " in text
    assert "8 jobs" in text
    assert float(row["core_hours"]) > 0
    after = {path.name: checksums.sha256(path) for path in folder.iterdir() if path.is_file()}
    assert after == before


def test_without_calibrating_an_image_that_cannot_be_read_is_planned_too(folder):
    write_header_model(folder / "m.safetensors")
    good = write_image(folder / "a.tif", (100, 90)).read_bytes()
    (folder / "b.tif").write_bytes(good[:40])
    write_table(folder / "images.csv", [{"image": k, "path": f"{k}.tif"} for k in "ab"])
    found = rows(folder, "--no-calibrate")
    assert [row["jobs"] for row in found] == ["6", "6"]
    assert {row["rates"] for row in found} == {"constants of cost.py"}


def test_what_is_wrong_with_the_run_is_told_first(folder, capfd):
    write_table(folder / "images.csv", [{"image": "a", "path": "no.tif"}])
    with pytest.raises(InputError, match="see above; correct them first"):
        rows(folder)
    assert "no such file 'no.tif'" in capfd.readouterr().err
    assert not (folder / "results").exists()


def test_without_calibrating_rates_are_those_that_the_same_model_had_here(folder):
    write_header_model(folder / "m.safetensors")
    write_image(folder / "a.tif", (100, 200))
    write_table(folder / "images.csv", [{"image": "a", "path": "a.tif"}])
    steps = [
        {"step": "tile", "shape": [100, 200], "grid_shape": [100, 200], "cpu_seconds": 2}
        | {"output_bytes": 60_000},
        {"step": "infer", "device": "cpu", "network_cpu_seconds": 720, "voxels_computed": 20_000}
        | {"voxels_decoded": 20_000}
        | {"output_bytes": 40_000},
        {"step": "cluster", "n_tiles": 1, "clustering_seconds": 0}
        | {"n_objects": 3, "output_bytes": 2_000},
    ]
    provenance = {"model": {"path": "m.safetensors"}, "steps": steps}
    path = folder / "results/a/provenance.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(provenance))
    (row,) = rows(folder, "--no-calibrate")
    assert row["rates"] == "earlier runs"
    # Blocks of 64 px with 24 px around them, at 720 s per 20,000 voxels.
    assert 0 <= float(row["core_hours"]) - 148 * 328 * 720 / 20_000 / 3600 < 0.005
    path.write_text(json.dumps(provenance | {"model": {"path": "other.safetensors"}}))
    (row,) = rows(folder, "--no-calibrate")
    assert row["rates"] == "constants of cost.py"


@pytest.mark.parametrize(("text", "says"), [("- 1", "a mapping"), ("a: [", "not YAML")])
def test_a_config_that_is_none_is_refused(folder, text, says):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        rows(folder)
