import csv
import itertools

import numpy as np
import pytest

import sticks
from iaunet import checkpoint, recipes


@pytest.fixture
def small(monkeypatch):
    """Make networks and sets of images small."""
    net = recipes.NET[2] | {"widths": [4, 4, 4], "pools": [[2, 2]] * 2}
    monkeypatch.setitem(recipes.NET, 2, net)
    monkeypatch.setattr(sticks, "IMAGES_PER_STEP", 1)
    monkeypatch.setattr(sticks, "N_IMAGES", {sticks.VALIDATION: 1, sticks.TEST: 2})
    monkeypatch.setattr(sticks, "GRID", {"min_size": (50, 100)})
    monkeypatch.setattr(sticks, "PEAKS_PX", (5, 20))


def run(folder, steps):
    sticks.main(
        [
            *(f"--output={folder / 'out'}", f"--work={folder / 'work'}"),
            *("--vectors", "hybrid", "spatial", "--seed=1", "--threads=1"),
            f"--max-steps={steps}",
        ]
    )


def test_one_command_leaves_scores_a_figure_and_models(small, tmp_path):
    run(tmp_path, 2)
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert len(rows) == 7
    assert {row["n_true"] for row in rows.values()} == {"16"}
    assert 0 < float(rows[sticks.COMPONENTS]["ap50"]) < 0.85
    assert (tmp_path / "out" / "worst.png").read_bytes().startswith(b"\x89PNG")
    _, meta = checkpoint.load(tmp_path / "out" / "sticks-hybrid.safetensors")
    assert meta["clustering"]["mode"] == "meanshift"
    assert meta["net"]["emb_dim"] == recipes.EMB_DIM


def test_no_image_is_in_two_sets():
    images = [sticks.drawn(0, 1, part).image for part in range(3)]
    assert all((a != b).any() for a, b in itertools.pairwise(images))
    assert images[0].min() == 0
    assert images[0].max() == 1


def test_labels_of_the_truth_score_one():
    images = [sticks.drawn(k, 1, sticks.TEST) for k in range(2)]
    found = sticks.scores(images, [one.labels + np.int32(5) * (one.labels > 0) for one in images])
    assert found["ap50"] == found["ap_mean"] == 1
