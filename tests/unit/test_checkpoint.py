import json
import struct

import pytest
import torch

import nets
from iaunet import checkpoint
from iaunet.errors import InputError
from iaunet.net import IAUNet, dependency_radius


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    options = {
        "ndim": 2,
        "widths": [4, 4, 4],
        "pools": [[2, 2], [2, 2]],
        "max_offset": [8, 8],
        "max_sigma": [4, 4],
    }
    net = IAUNet(**options)
    meta = {
        "name": "tiny",
        "ndim": 2,
        "in_channels": 1,
        "net": options,
        "stride": [4, 4],
        "id_stride": [4, 4],
        "radius": list(dependency_radius(net)),
        "block": [64, 64],
        "normalize": {"percentiles": [1, 99.8]},
        "max_offset": [8, 8],
        "max_sigma": [4, 4],
        "clustering": {"seed": 0.5},
    }
    path = tmp_path / "tiny.safetensors"
    checkpoint.save(path, net.state_dict(), meta)
    return path, net, meta


def test_a_saved_model_comes_back_whole(model):
    path, net, meta = model
    loaded, found = checkpoint.load(path)
    assert meta.items() <= found.items()
    for key, value in net.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])
    assert not loaded.training


def test_equal_models_are_equal_files(model, tmp_path):
    path, net, meta = model
    checkpoint.save(tmp_path / "again.safetensors", net.state_dict(), meta)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file_is_refused_by_name(model, length):
    path, _, _ = model
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"tiny.safetensors: .*truncated"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04" + bytes(200), b"x" * 500, struct.pack("<Q", 2) + b"{}", b"\xff" * 64],
    ids=["zip or pickle", "text", "empty safetensors", "huge header"],
)
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"foreign.safetensors"):
        checkpoint.read_meta(path)


def test_safetensors_of_another_program_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="of another program"):
        checkpoint.read_meta(tmp_path / "other.safetensors")


def rewrite(path, change):
    from safetensors.torch import load_file, save_file

    weights, meta = load_file(path), checkpoint.read_meta(path)
    change(weights, meta)
    save_file(weights, path, {"iaunet": json.dumps(meta)})


def test_weights_of_another_architecture_are_refused(model):
    path, _, _ = model
    rewrite(path, lambda weights, meta: meta["net"].update(widths=[4, 4, 8]))
    with pytest.raises(InputError, match="another architecture"):
        checkpoint.load(path)


def test_a_wrong_halo_in_the_metadata_is_refused(model):
    path, _, _ = model
    rewrite(path, lambda weights, meta: meta.update(radius=[1, 1]))
    with pytest.raises(InputError, match=r"metadata say radius \[1, 1\]"):
        checkpoint.load(path)


def test_weights_that_are_not_finite_are_refused(model):
    path, _, _ = model
    net, meta = checkpoint.load(path)
    weights = net.state_dict()
    weights["stem.weight"].fill_(float("nan"))
    checkpoint.save(path, weights, meta)
    with pytest.raises(InputError, match="NaN"):
        checkpoint.load(path)


def test_what_was_calibrated_comes_back_and_must_fit_the_network(model):
    path, net, meta = model
    largest = nets.largest_values(net)
    checkpoint.save(path, net.state_dict(), meta | {"int8": {"largest": largest}})
    assert checkpoint.load(path)[0].largest == largest
    wrong = (
        {},
        {"largest": []},
        {"largest": largest | {"more": [1.0]}},
        {"largest": largest | {"stem": largest["stem"][1:]}},
        {"largest": largest | {"stem": [float("nan")] * len(largest["stem"])}},
        {"largest": largest | {"stem": ["1"] * len(largest["stem"])}},
        {"largest": largest | {"stem": [-1.0] * len(largest["stem"])}},
    )
    for facts in wrong:
        checkpoint.save(path, net.state_dict(), meta | {"int8": facts})
        with pytest.raises(InputError, match="calibrate it again"):
            checkpoint.load(path)


def test_one_flipped_bit_of_the_weights_is_found(model):
    path, _, _ = model
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged: the weights are not those that were saved"):
        checkpoint.load(path)


def test_metadata_without_a_key_are_refused(model):
    path, _, _ = model
    rewrite(path, lambda weights, meta: meta.pop("block"))
    with pytest.raises(InputError, match="no valid 'block'"):
        checkpoint.read_meta(path)


def test_an_unknown_model_names_the_shipped_ones(model):
    path, _, _ = model
    assert checkpoint.resolve("tiny", path.parent) == path
    assert checkpoint.resolve(path, None) == path
    with pytest.raises(InputError, match=r"'nuclei': no such file.*shipped: tiny"):
        checkpoint.resolve("nuclei", path.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("diameter_px", {"smallest": [13.0, 13.0]}),
        ("diameter_px", [13.0, 50.0]),
        ("diameter_px", {"smallest": [13.0, -1], "largest": [50.0, 50.0]}),
        ("pixel_um", ["a", "b"]),
        ("pixel_um", [0.01]),
    ],
)
def test_sizes_that_make_no_sense_are_named(model, key, value):
    path, net, meta = model
    checkpoint.save(path, net.state_dict(), meta | {key: value})
    with pytest.raises(InputError, match=f"'{key}.*' needs 2 positive numbers"):
        checkpoint.read_meta(path)
