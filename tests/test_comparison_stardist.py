"""StarDist as a peer; it runs in the environment of the peers, which has no torch."""

import json

import numpy as np
import pytest
import tifffile

from iaunet import synthetic
from iaunet.errors import InputError

pytest.importorskip("tensorflow")
pytest.importorskip("keras")

import peers


def run_peer(folder, shape):
    """Fit StarDist to two drawn images within a second and segment a third one."""
    rows = ["image,path,reference,split"]
    for k, side in enumerate(("train", "train", "validation")):
        rng = np.random.default_rng(k)
        image, labels = synthetic.draw_nuclei(shape, rng, diameter_px=24)
        tifffile.imwrite(folder / f"{k}.tif", image)
        tifffile.imwrite(folder / f"{k}-mask.tif", labels)
        rows.append(f"i{k},{k}.tif,{k}-mask.tif,{side}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    options = {"peer": "stardist", "table": folder / "table.csv", "choose-on": "validation"}
    options |= {"output": folder / "out", "work": folder / "work", "max-minutes": 0.02}
    options |= {"threads": 1, "seed": 1}
    peers.main([f"--{key}={value}" for key, value in options.items()])
    return folder / "out"


def test_stardist_trains_within_a_budget_and_segments(tmp_path):
    out = run_peer(tmp_path, (256, 272))
    assert tifffile.imread(out / "i2.tif").shape == (256, 272)
    facts = json.loads((out / "peer.json").read_text())
    assert facts["steps"] == facts["best_step"] == 1
    assert facts["minutes"] >= 0.02
    assert set(facts["settings"]) == {"prob", "nms"}


def test_images_smaller_than_a_patch_are_refused(tmp_path):
    with pytest.raises(InputError, match="this peer needs"):
        run_peer(tmp_path, (100, 300))
