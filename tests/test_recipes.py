"""Every shipped model has a card and a recipe that train.py understands."""

import numpy as np
import pytest

import make
import prepare
import train
from iaunet import checkpoint
from runs import REPOSITORY

MODELS = sorted((REPOSITORY / "resources/models").glob("*.safetensors"))


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_a_shipped_model_has_a_card_and_a_recipe(model):
    meta = checkpoint.read_meta(model)
    assert meta["name"] == model.stem in prepare.TABLES
    assert meta["training"]["data_sha256"] in model.with_suffix(".md").read_text()


def test_shipped_models_are_small_enough_for_a_clone():
    assert sum(path.stat().st_size for path in MODELS) <= 40e6


@pytest.mark.parametrize("name", prepare.TABLES)
def test_every_stage_of_a_recipe_is_a_command_of_train(name, tmp_path):
    found = make.stages(name)
    assert found
    for options in found:
        args = train.parse_args(
            [
                *(*options, f"--name={name}", f"--output={tmp_path}", f"--work={tmp_path}"),
                *("--threads=1", "--max-minutes=0"),
            ]
        )
        assert args.max_steps > 0


def test_small_pieces_of_labels_join_the_nearest_large_one(monkeypatch):
    monkeypatch.setattr(prepare, "FRAGMENT_VOXELS", 20)
    labels = np.repeat([1, 2], 30).reshape(2, 30).repeat(3, axis=0)
    labels[1, 3:6] = 2  # a piece of 3 voxels in the middle of 1
    joined = prepare.joined_fragments(labels)
    assert (joined[:3] == 1).all()
    assert (joined[3:] == 2).all()
