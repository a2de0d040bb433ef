"""A model for other programs."""

import json

import numpy as np
import pytest
import torch

import export
import nets
from iaunet import checkpoint
from iaunet.errors import InputError

openvino = pytest.importorskip("openvino")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_is_written_computes_what_the_model_does(tmp_path, ndim, rng):
    model = nets.save_model(tmp_path / "m.safetensors", ndim)
    export.main(["--model", str(model), "--output", str(tmp_path / "out")])
    net, meta = checkpoint.load(model)
    facts = json.loads((tmp_path / "out" / f"{meta['name']}.json").read_text())
    shape = [6 * step for step in facts["input"]["multiple_of"]]
    image = rng.random((1, 1, *shape), np.float32)
    with torch.inference_mode():
        expected = net(torch.from_numpy(image))
    path = tmp_path / "out" / f"{meta['name']}"
    session = onnxruntime.InferenceSession(f"{path}.onnx")
    found = session.run(list(facts["outputs"]), {"image": image})
    core = openvino.Core()
    compiled = core.compile_model(f"{path}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)
    for name, one in zip(facts["outputs"], found, strict=True):
        reference = getattr(expected, name).numpy()
        np.testing.assert_allclose(one, reference, atol=1e-3)
        np.testing.assert_allclose(compiled[name], reference, atol=1e-3)
    assert facts["parity"]["openvino"]["fg"]["largest"] < 1e-3


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    model = nets.save_model(tmp_path / "m.safetensors", 2)
    monkeypatch.setattr(export, "MOST", 0.0)
    with pytest.raises(InputError, match="converted outputs differ by up to"):
        export.main(["--model", str(model), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export.main(["--model", "m.safetensors", "--output", str(tmp_path)])
    assert (tmp_path / "kept").read_text() == "mine"
