"""The description of a run: whole, true to the files, the same for the same records."""

import json
import socket
import warnings

import pytest
from rocrate.rocrate import ROCrate

import crate
from iaunet import checksums
from runs import REPOSITORY, write_image, write_table

STEP = {"packages": {"numpy": "2.1"}, "python": "3.11", "cpu_seconds": 2, "peak_memory_mb": 9}


def finished(folder, image):
    """Write the files of a finished image."""
    home = folder / "results" / image
    (home / f"{image}.ome.zarr").mkdir(parents=True)
    for name in crate.MADE:
        path = home / name.format(image=image)
        path = path / "zarr.json" if path.is_dir() else path
        path.write_text(f"{name} of {image}")
    model = folder / "m.safetensors"
    store = home / f"{image}.ome.zarr"
    provenance = {
        "image": image,
        "folder": str(folder),
        "version": "0",
        "input": {"path": "raw/a b.tif", **checksums.facts(folder / "raw/a b.tif")},
        "reference": None,
        "reference_source": None,
        "model": {"name": "m", "path": "m.safetensors", **checksums.facts(model)},
        "code": {"commit": "c0ffee", "dirty": False},
        "config": {"image": {}},
        "steps": [
            {"step": "tile", "jobs": [{"started": 1e9 + 0.5, "seconds": 2.0}], **STEP},
            {"step": "measure", "jobs": [{"started": 1e9 + 9, "seconds": 3.0}], **STEP},
        ],
        "outputs": {store.name: checksums.facts(store)},
    }
    (home / "provenance.json").write_text(json.dumps(provenance))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a run of which one image failed, in the working directory; there is no network."""

    def refused(*_, **__):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    for name in ("a b", "c"):
        write_image(tmp_path / f"raw/{name}.tif", (8, 9))
    (tmp_path / "m.safetensors").write_bytes(b"weights")
    paths = {"a": "raw/a b.tif", "c": "raw/c.tif", "gone": "raw/gone.tif"}
    rows = [{"image": image, "path": path} for image, path in paths.items()]
    write_table(tmp_path / "images.csv", rows)
    finished(tmp_path, "a")
    summary = [
        {"image": "a", "status": "ok", "reason": ""},
        {"image": "c", "status": "failed", "reason": "c.tif: truncated, 7 < 8"},
        {"image": "gone", "status": "failed", "reason": "no such file"},
    ]
    write_table(tmp_path / "results/summary.csv", summary)
    (tmp_path / "results/summary.html").write_text("<html>")
    return tmp_path


def write():
    """Write the crate; return its metadata file."""
    options = {
        "--summary": "results/summary.csv",
        "--table": "images.csv",
        "--config": json.dumps({"device": "cpu", "tiling": {"core_px": [256, 256]}}),
        "--snakefile": str(REPOSITORY / "Snakefile"),
        "--results": "results",
        "--parts": "results/ro-crate",
        "--output": "results/ro-crate-metadata.json",
    }
    crate.main([word for option in options.items() for word in option])


def read(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ROCrate(folder / "results")


def test_every_file_of_the_crate_is_there_with_its_size_and_checksum(folder):
    write()
    found = read(folder)
    seen = set()
    for entity in found.data_entities:
        path = folder / "results" / entity.id
        if entity.id.startswith("file://"):
            path = next(path for path in folder.rglob("*") if path.as_uri() == entity.id)
            if "sha256" not in entity:  # of the image that failed, nobody took it
                assert path.name == "c.tif"
                continue
        assert entity["sha256"] == checksums.sha256(path)
        assert int(entity["contentSize"]) == checksums.n_bytes(path)
        seen.add(entity.id)
    names = {name.format(image="a") for name in crate.MADE}
    names = {f"a/{name}/" if name.endswith(".zarr") else f"a/{name}" for name in names}
    names |= {"summary.csv", "summary.html"}
    names |= {f"ro-crate/{name}" for name in ("Snakefile", "config.yaml", "images.csv")}
    assert {name for name in seen if not name.startswith("file:")} == names


def test_the_run_and_every_image_have_an_action_and_failures_their_reason(folder):
    write()
    found = read(folder)
    run, *images = found.root_dataset["mentions"]
    assert run["instrument"].id == found.mainEntity.id == "ro-crate/Snakefile"
    assert found.mainEntity["version"] == "c0ffee"
    assert run["error"] == "2 of 3 images failed: c, gone"
    assert (run["startTime"], run["endTime"]) == (
        "2001-09-09T01:46:40+00:00",
        "2001-09-09T01:46:52+00:00",
    )
    told = {one.id: (one["actionStatus"], one.get("error")) for one in images}
    assert told == {
        "#image-a": (crate.DONE, None),
        "#image-c": (crate.FAILED, "c.tif: truncated, 7 < 8"),
        "#image-gone": (crate.FAILED, "no such file"),
    }
    went_in = {entity["name"] for entity in images[0]["object"]}
    assert went_in == {"a b.tif", "m.safetensors"}
    assert {"a b.tif", "m.safetensors", "config.yaml"} <= {one["name"] for one in run["object"]}


def test_the_same_records_give_the_same_bytes(folder):
    write()
    path = folder / "results/ro-crate-metadata.json"
    before = path.read_bytes()
    write()
    assert path.read_bytes() == before
    assert not list((folder / "results").glob("*.partial"))


def test_an_image_with_a_damaged_provenance_has_it_as_its_reason(folder):
    (folder / "results/a/provenance.json").write_text("{")
    write()
    assert "not valid JSON" in read(folder).get("#image-a")["error"]


def test_a_run_in_which_all_images_failed_is_described(folder):
    summary = folder / "results/summary.csv"
    summary.write_text(summary.read_text().replace("a,ok,", "a,failed,lost"))
    write()
    assert read(folder).get("#run")["error"].startswith("3 of 3 images failed")
