"""A model that a process has loaded is loaded anew when its file is another."""

import numpy as np
import pytest
import torch

from iaunet import network
from nets import save_model

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path):
    """Return the path of a model that a test writes."""
    return tmp_path / "m.safetensors"


def test_a_model_is_loaded_and_prepared_once_until_its_file_changes(path, rng):
    image = torch.from_numpy(rng.random((1, 1, 64, 64), np.float32))
    said = []
    for seed in range(2):
        save_model(path, 2, seed)
        made = [network.prepare(path, "torch", "float32", CPU, 1) for _ in range(2)]
        assert made[0] is made[1]
        assert network.load(path)[0] is network.load(path)[0]
        with torch.inference_mode():
            said.append(made[0](image).fg)
    assert not torch.equal(*said)


def test_another_way_to_compute_is_prepared_anew(path):
    save_model(path, 2)
    ways = ["float32", "bfloat16", "float32"]
    found = [network.prepare(path, "torch", way, CPU, 1).precision for way in ways]
    assert found == ways
