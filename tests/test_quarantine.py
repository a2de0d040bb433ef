"""A tile that fails twice costs its own region, and nothing else."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import tifffile

import spoiling
from iaunet import checkpoint, omezarr, quarantine, synthetic, tables
from runs import REPOSITORY, write_table
from test_exactness import segment
from test_workflow import snakemake

MODELS = REPOSITORY / "resources/models"
CASES = {
    2: {"model": "nuclei-2d", "shape": (90, 760), "core": (96, 96), "diameter": 22},
    3: {"model": "nuclei-3d", "shape": (16, 48, 380), "core": (16, 48, 48), "diameter": 16},
}
SPOILT = 1  # of 8 tiles in a row


def write_case(folder, ndim):
    """Write an image of nuclei, and a model whose blocks are as small as its tiles."""
    case = CASES[ndim]
    rng = np.random.default_rng(4)
    image, _ = synthetic.draw_nuclei(case["shape"], rng, diameter_px=case["diameter"])
    tifffile.imwrite(folder / "a.tif", image)
    net, meta = checkpoint.load(MODELS / f"{case['model']}.safetensors")
    small = meta | {"block": list(case["core"])}
    checkpoint.save(folder / "m.safetensors", net.state_dict(), small)
    return folder / "a.tif", folder / "m.safetensors"


@pytest.fixture(scope="module", params=CASES, ids=["2d", "3d"])
def undisturbed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    image, model = write_case(folder, request.param)
    core = CASES[request.param]["core"]
    return request.param, image, model, segment(folder / "run", image, model, core, 2)


def by_gid(folder):
    """Return the objects of a run by gid: the verdict, and all of the table but their numbers."""
    identities = tables.read_parquet(folder / "identities.parquet").set_index("gid")
    objects = tables.read_parquet(folder / "objects.parquet").drop(columns=["label"])
    rows = [tuple(map(str, row)) for row in objects.itertuples(index=False)]
    return dict(zip(identities.index, zip(identities["verdict"], rows, strict=True), strict=True))


def named(folder):
    """Return the label image of a run with gid + 1 in place of the numbers."""
    identities = tables.read_parquet(folder / "identities.parquet")
    gid = np.concatenate([[0], identities["gid"].to_numpy(np.int64) + 1])
    return gid[omezarr.open_labels(folder / "image.ome.zarr")[...]]


@pytest.mark.parametrize("spoilt", ["block", "tile"], ids=["infer", "cluster"])
def test_a_failed_tile_is_empty_and_what_is_not_near_it_is_unchanged(
    undisturbed, spoilt, tmp_path, monkeypatch
):
    ndim, image, model, whole = undisturbed
    monkeypatch.setattr(quarantine, "attempt", quarantine.attempt)
    monkeypatch.setenv(spoiling.SPOILT, f"{spoilt} {SPOILT}")
    spoiling.spoil()
    folder = segment(tmp_path / "run", image, model, CASES[ndim]["core"], 2)
    metrics = json.loads((folder / "metrics.json").read_text())
    (failed,) = metrics["failed_tiles"]
    assert (failed["tile"], failed["batch"]) == (SPOILT, 0)
    assert failed["stage"] == {"block": "infer", "tile": "cluster"}[spoilt]
    assert failed["cause"] == "RuntimeError: this tile is cursed"
    assert "1 of 8 tiles failed twice" in metrics["warnings"][0]
    assert json.loads((folder / "provenance.json").read_text())["failed_tiles"] == [failed]
    found, before = by_gid(folder), by_gid(whole)
    labels, labels_before = named(folder), named(whole)
    region = tuple(slice(*side) for side in failed["box"])
    assert not labels[region].any()
    touching = tuple(slice(max(0, a - 1), b + 1) for a, b in failed["box"])
    for gid in set(np.unique(labels[touching]).tolist()) - {0}:
        assert found[gid - 1][0] == "cut"
    verdicts = Counter(verdict for verdict, _ in found.values())
    assert verdicts["cut"] > 0
    assert verdicts["agreed"] > 5
    assert set(verdicts) <= {"agreed", "near", "cut"}
    for gid, (verdict, row) in found.items():
        if verdict == "agreed":
            assert row == before[gid][1]
            np.testing.assert_array_equal(labels == gid + 1, labels_before == gid + 1)
    # What is gone had its seed, or some voxel, in the region, or is told to point into it.
    inside = set((np.unique(labels_before[region]) - 1).tolist())
    gone = set(before) - set(found)
    assert gone <= inside
    outside = np.where(labels == 0, labels_before, 0)
    outside[region] = 0
    lost = np.isin(outside, np.array(sorted(gone), dtype=np.int64) + 1).sum()
    told = omezarr.labels_attrs(folder / "image.ome.zarr", "instances")["voxels_lost"]
    assert told >= 0.9 * lost


def test_a_batch_of_which_nothing_is_left_is_an_error(undisturbed, tmp_path, monkeypatch):
    ndim, image, model, _ = undisturbed
    monkeypatch.setattr(quarantine, "attempt", lambda work, what: quarantine.Failed("no luck"))
    with pytest.raises(quarantine.InputError, match="all 4 tiles of batch 0 failed twice"):
        segment(tmp_path / "run", image, model, CASES[ndim]["core"], 2)
    assert not (tmp_path / "run/outputs-0.zarr").exists()


def test_the_same_command_redoes_the_batch_of_a_failed_tile_and_no_other(tmp_path):
    folders = [tmp_path / "spoilt", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
        write_case(folder, 2)
        write_table(folder / "images.csv", [{"image": "a", "path": "a.tif"}])
        tiling = "tiling: {core_px: [96, 96], tiles_per_batch: 3}\n"
        config = f"images: images.csv\nmodel: ./m.safetensors\ndiameter_px: native\n{tiling}"
        (folder / "config.yaml").write_text(config)
    hook = tmp_path / "hook"
    hook.mkdir()
    first = snakemake(folders[0], env=spoiling.environment(hook, f"block {SPOILT}"))
    assert first.returncode == 1, first.stderr
    told = "a, tile 1: failed twice in infer, batch 0: RuntimeError: this tile is cursed"
    assert told in first.stderr
    assert "logs/infer/a/0.log ends with:" in first.stderr
    with (folders[0] / "results/summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["n_failed_tiles"]) == ("incomplete", "1")
    assert "1 of 8 tiles failed twice" in row["reason"]
    assert (folders[0] / "results/a/report.html").is_file()
    second = snakemake(folders[0])
    assert second.returncode == 0, second.stderr
    started = [
        line.split()[1].rstrip(":")
        for line in second.stderr.splitlines()
        if line.startswith(("localrule ", "rule "))
    ]
    assert Counter(started)["tile"] == 0
    assert Counter(started)["infer"] == 1
    assert snakemake(folders[1]).returncode == 0
    for file in ("objects.csv", "objects.parquet", "seams.csv", "steps/identities.parquet"):
        one, other = (folder / "results/a" / file for folder in folders)
        assert one.read_bytes() == other.read_bytes(), file
    kept = list(folders[0].glob("results/a/steps/**/*.zarr"))
    assert not kept
