"""A model is made ready for int8 where that costs no accuracy, and is else left alone."""

import json

import pytest
import torch

import calibrate
import nets
from iaunet import backends, calibration, checkpoint, int8
from iaunet.errors import InputError
from small_training import draw_table, make_small

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not int8.is_quick(CPU), reason="this processor has no VNNI")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model file with random weights, as if train.py had written it."""
    make_small(monkeypatch.setattr)
    path = nets.save_model(tmp_path / "m.safetensors", 2)
    net, meta = checkpoint.load(path)
    del meta["weights_sha256"]
    checkpoint.save(path, net.state_dict(), meta | {"training": {}})
    return path


def run(model, table, *more):
    output = model.parent / "out.safetensors"
    words = ["--model", model, "--table", table, "--output", output, *more]
    calibrate.main([str(word) for word in words])
    return output


def test_weights_stay_and_int8_is_taken(model, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MOST_LOST", 1)  # random weights find nothing
    record = tmp_path / "r.json"
    path = run(model, draw_table(tmp_path), "--drawn", "8", "--seed", "3", "--record", record)
    (before, old), (after, new) = checkpoint.load(model), checkpoint.load(path)
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])
    assert {key: value for key, value in new.items() if key != "int8"} == old
    assert backends.prepare(after, "auto", "auto", CPU, 1).precision == "int8"
    assert json.loads(record.read_text())["ap_mean"] == new["int8"]["ap_mean"]


def test_where_accuracy_falls_nothing_is_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MOST_LOST", -2)
    with pytest.raises(InputError, match="int8 is not as good here; nothing was written"):
        run(model, draw_table(tmp_path))
    assert not (tmp_path / "out.safetensors").exists()


def test_no_file_is_overwritten_and_networks_of_others_are_refused(model, tmp_path):
    table = draw_table(tmp_path)
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        run(model, table)
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    (tmp_path / "out.safetensors").unlink()
    net, meta = checkpoint.load(model)
    del meta["training"], meta["weights_sha256"]
    checkpoint.save(model, net.state_dict(), meta)
    with pytest.raises(InputError, match=r"not a network of train\.py"):
        run(model, table)


def test_a_table_of_one_side_is_told(model, tmp_path):
    table = draw_table(tmp_path)
    table.write_text(table.read_text().replace("validation", "train"))
    with pytest.raises(InputError, match="needs images to train and to validate with"):
        run(model, table)
