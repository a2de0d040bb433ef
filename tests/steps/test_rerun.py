"""A repeat rests on what was segmented, touches nothing, and says what is not the same."""

import csv
import json

import pytest
import yaml

import rerun
from iaunet import __version__, checksums, cli, machine
from iaunet.errors import InputError


@pytest.fixture
def run(tmp_path):
    """Return the folder of a finished run of image a, its provenance, and its provenance.json."""
    home = tmp_path / "run/results/a"
    home.mkdir(parents=True)
    for name in ("a.tif", "m.safetensors", "true.tif"):
        (tmp_path / "run" / name).write_text(name)
    for name in rerun.FILES:
        (home / name).write_text(json.dumps({"n_objects": 1, "seconds": 2}))
    shard = home / "a.ome.zarr/labels/instances/0/c/0/0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"labels")
    attributes = {"iaunet": {"source": {"path": "a.tif", "sha256": "1"}}}
    (home / "a.ome.zarr/zarr.json").write_text(json.dumps({"attributes": attributes}))

    def facts(name):
        return {"path": name, **checksums.facts(tmp_path / "run" / name)}

    row = {"image": "a", "path": "a.tif", "model": "m.safetensors", "reference": "true.tif"}
    row |= {"channel": "DAPI", "frame": "2", "scene": None, "diameter_px": "12"}
    found = {
        "image": "a",
        "version": __version__,
        "folder": str(tmp_path / "run"),
        "code": machine.code() | {"dirty": False},
        "input": facts("a.tif"),
        "model": {"name": "m", **facts("m.safetensors")},
        "reference": "true.tif",
        "reference_source": facts("true.tif"),
        "config": {"image": row, "device": "auto", "tiling": {"core_px": [256, 256]}},
        "steps": [{"step": "infer", "device": "cpu", "cpu": machine.cpu()}],
    }
    found["steps"][0] |= {"packages": cli.package_versions()}
    path = home / "provenance.json"
    path.write_text(json.dumps(found))
    return tmp_path / "run", found, path


def repeated(monkeypatch, change):
    """Let the repeat leave a copy of the results with a change."""

    def repeat(folder, again, cores):
        home = folder.parent / "results/a"
        for path in checksums.files(home):
            to = again / path.relative_to(home)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
        change(again)

    monkeypatch.setattr(rerun, "repeat", repeat)


def bytes_of(folder):
    return {path: path.read_bytes() for path in checksums.files(folder)}


def test_equal_results_are_the_same_again_but_for_times_and_places(run, monkeypatch, capsys):
    folder, _, path = run

    def elsewhere(again):
        (again / "metrics.json").write_text(json.dumps({"n_objects": 1, "seconds": 77}))
        attributes = {"iaunet": {"source": {"path": "/b.tif", "sha256": "1"}}}
        (again / "a.ome.zarr/zarr.json").write_text(json.dumps({"attributes": attributes}))

    repeated(monkeypatch, elsewhere)
    before = bytes_of(folder / "results")
    rerun.main([str(path), "--output", str(folder / "again")])
    assert "the same again: all 6 results of a agree" in capsys.readouterr().out
    assert bytes_of(folder / "results") == before


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.ome.zarr/labels/instances/0/c/0/0", b"Labels", "labels/instances/0"),
        ("objects.csv", b"more", "objects.csv"),
        ("metrics.json", b'{"n_objects": 2}', "metrics.json"),
        ("seams.csv", None, "seams.csv"),
    ],
)
def test_what_differs_is_named(run, monkeypatch, capsys, name, content, says):
    folder, _, path = run

    def change(again):
        (again / name).unlink()
        if content is not None:
            (again / name).write_bytes(content)

    repeated(monkeypatch, change)
    with pytest.raises(InputError, match=rf"1 of 6 results are not the same again: \S*{says}"):
        rerun.main([str(path), "--output", str(folder / "again")])
    assert f"{name}: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.tif", "m.safetensors", "true.tif"])
def test_what_went_in_must_be_there_and_unchanged(run, name):
    folder, _, path = run
    (folder / name).write_text("other")
    with pytest.raises(InputError, match=rf"{name} was changed: sha256 .*, recorded is"):
        rerun.main([str(path)])
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"no \w+ at .*{name}; put it back there"):
        rerun.main([str(path)])
    assert sorted(child.name for child in path.parent.parent.iterdir()) == ["a"]


def test_a_run_folder_that_moved_is_found_beside_the_results(run, monkeypatch):
    folder, found, _ = run
    moved = folder.rename(folder.with_name("moved"))
    places = rerun.check_inputs(found, moved, moved / "results/a/provenance.json")
    assert places["image"] == moved / "a.tif"


def test_table_and_config_of_the_repeat_are_the_recorded_ones(run):
    folder, found, path = run
    places = rerun.check_inputs(found, folder, path)
    again = folder / "again"
    rerun.prepare(again, found, places)
    with (again / "images.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert {key: value for key, value in row.items() if value} == {
        "image": "a",
        "path": str(folder / "a.tif"),
        "model": str(folder / "m.safetensors"),
        "reference": str(folder / "true.tif"),
        "channel": "DAPI",
        "frame": "2",
        "diameter_px": "12",
    }
    config = yaml.safe_load((again / "config.yaml").read_text())
    assert config["tiling"] == {"core_px": [256, 256]}
    assert (config["device"], config["images"]) == ("cpu", "images.csv")
    rerun.prepare(again, found, places)  # goes on with a killed one
    with pytest.raises(InputError, match="holds files already"):
        rerun.prepare(again, {**found, "config": {**found["config"], "seed": 1}}, places)
    (again / "results/a").mkdir(parents=True)
    (again / "results/a/metrics.json").touch()
    with pytest.raises(InputError, match="holds files already"):
        rerun.prepare(again, found, places)


def test_what_is_not_as_it_was_is_told(run):
    _, found, _ = run
    now = [text for text in rerun.differences(found) if "files were changed now" not in text]
    assert [text for text in now if not text.startswith("python")] == []
    found["code"] = {"commit": "abc", "dirty": True}
    found["steps"][0] |= {"cpu": "Z80", "packages": {"numpy": "0.1"}}
    text = "\n".join(rerun.differences(found))
    for part in ("commit: abc then", "changed then", "cpu: Z80 then", "numpy: 0.1 then"):
        assert part in text


def test_a_provenance_of_a_step_run_alone_is_not_enough(run):
    _, found, path = run
    path.write_text(json.dumps(found | {"config": None}))
    with pytest.raises(InputError, match="has no 'config'; needs a provenance"):
        rerun.main([str(path)])
