"""Networks of other people, from their file to labels."""

import json

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

import adopt
import cluster
import foreign_nets
import infer
import tile
from iaunet import backends, checkpoint, outputs
from iaunet.errors import InputError, OptionError
from iaunet.foreign import Foreign
from iaunet.net import IAUNet
from nets import save_model


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def adopted(folder, content, *options, name="theirs"):
    (folder / "net.pt").write_bytes(content)
    path = folder / f"{name}.safetensors"
    words = ["--source", folder / "net.pt", "--output", path, *options]
    adopt.main([str(word) for word in words])
    return path


def small_options(heads=foreign_nets.HEADS):
    return [*foreign_nets.OPTIONS, "--heads", *heads]


def own_package(folder, ndim):
    """Write our own network as a package of others."""
    content, facts = foreign_nets.native(ndim)
    ours = facts | {"block": [64, 64] if ndim == 2 else [16, 32, 32], "clustering": {"min_size": 4}}
    described = foreign_nets.description(content, ndim, config={"iaunet": ours})
    for output in described["outputs"]:
        output.pop("halo")  # more context than ours would be computed from other windows
    return foreign_nets.package(folder / "theirs.zip", content, described)


def tiled(folder, model, image, batches=2):
    """Run tile.py, infer.py and cluster.py; return the outputs, the labels and the warnings."""
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", image)
    core = ["48", "48"] if image.ndim == 2 else ["16", "32", "32"]
    words = ["--image", folder / "a.tif", "--name", "a", "--model", model, "--core-px", *core]
    words += ["--halo", "exact", "--batches", batches, "--percentiles", "1", "99.8"]
    words += ["--diameter-px", "auto"]
    words += ["--output", folder / "image.zarr", "--tiles", folder / "tiles.json"]
    tile.main([str(word) for word in words])
    tiles = json.loads((folder / "tiles.json").read_text())
    common = ["--tiles", folder / "tiles.json", "--model", model]
    stores = [folder / f"{batch}.zarr" for batch in range(batches)]
    labels = [folder / f"labels-{batch}.zarr" for batch in range(batches)]
    for batch, store in enumerate(stores):
        words = [*common, "--store", folder / "image.zarr", "--batch", batch, "--output", store]
        words += ["--device=cpu", "--backend=auto", "--precision=float32", "--threads=1"]
        infer.main([str(word) for word in words])
    for batch, store in enumerate(labels):
        words = [*common, "--outputs", *stores, "--batch", batch, "--output", store]
        words += ["--table", folder / f"{batch}.parquet"]
        words += ["--sightings", folder / f"{batch}.sightings.parquet"]
        words += ["--contacts", folder / f"{batch}.contacts.parquet"]
        words += ["--set", "seed=0.01", "fg=0.1", "phi=0.05", "min_size=1"]  # random weights
        cluster.main([str(word) for word in words])
    reader = outputs.Reader(stores, tiles)
    box = tuple(slice(0, n) for n in image.shape)
    found = {name: reader.read(name, box) for name in ("fg", "seed", "off", "lsig")}
    steps = reader.stride("id")
    cells = tuple(slice(0, -(-n // s)) for n, s in zip(image.shape, steps, strict=True))
    found["id"] = reader.read("id", cells)
    return found, outputs.Reader(labels, tiles).read(outputs.LABELS, box), tiles["warnings"]


@pytest.mark.parametrize(("ndim", "shape"), [(2, (90, 130)), (3, (20, 40, 50))])
def test_our_network_as_a_package_of_others_gives_the_same_bytes(
    tmp_path, ndim, shape, rng, monkeypatch
):
    # Ours is computed without its BatchNorms, and cut to the block, which rounds elsewhere; see
    # test_backends and test_net.
    monkeypatch.setattr(backends, "folded", lambda net: net)
    monkeypatch.setattr(IAUNet, "inside", Foreign.inside)
    image = rng.integers(0, 999, shape).astype(np.uint16)
    ours = save_model(tmp_path / "ours.safetensors", ndim)
    theirs = tmp_path / "theirs.safetensors"
    package = own_package(tmp_path, ndim)
    adopt.main(["--source", str(package), "--output", str(theirs)])
    known, meta = checkpoint.read_meta(ours), checkpoint.read_meta(theirs)
    assert (meta["stride"], meta["id_stride"]) == (known["stride"], known["id_stride"])
    # The package does not clip: of noise, no intensity is beyond the limits of our networks.
    one, labels, _ = tiled(tmp_path / "one", ours, image)
    other, their_labels, warnings = tiled(tmp_path / "other", theirs, image)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
    np.testing.assert_array_equal(labels, their_labels)
    assert labels.any()
    assert not [text for text in warnings if "exact" in text]


REFUSED = [
    ({"middle": nn.GroupNorm(2, 6)}, "GroupNorm .*layer middle.*differ by up to fg 0"),
    ({"middle": foreign_nets.Pooled()}, "pooling over the whole tile .*layer middle.*differ by"),
    ({"mode": "bilinear"}, "bilinear upsampling .*layer up.*differ by up to"),
    ({"pool": 4}, "misaligned stride.*correct the stride"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_a_network_that_is_not_exact_in_tiles_is_refused(tmp_path, options, says):
    content = foreign_nets.script(foreign_nets.small(**options))
    with pytest.raises(InputError, match=rf"net\.pt: not exact in tiles: {says}"):
        adopted(tmp_path, content, *small_options())
    assert not (tmp_path / "theirs.safetensors").exists()


def test_whoever_insists_is_warned_with_the_measured_difference(tmp_path, rng, caplog):
    content = foreign_nets.script(foreign_nets.small(middle=nn.GroupNorm(2, 6)))
    model = adopted(tmp_path, content, *small_options(), "--allow-inexact")
    meta = checkpoint.read_meta(model)
    assert meta["tile_safety"]["differences"]["fg"] > 1e-3
    assert meta["radius"] == [adopt.HALO_WITHOUT_END_PX] * 2
    (warning,) = meta["warnings"]
    assert warning in caplog.text
    _, _, found = tiled(tmp_path / "run", model, rng.integers(0, 99, (70, 80)).astype(np.uint8))
    assert warning in found
    assert "GroupNorm" in warning


def test_a_stride_that_cannot_be_is_refused_whoever_insists(tmp_path):
    content = foreign_nets.script(foreign_nets.small(pool=4))
    with pytest.raises(InputError, match="misaligned stride"):
        adopted(tmp_path, content, *small_options(), "--allow-inexact")


def test_equal_sources_are_equal_models(tmp_path):
    content = foreign_nets.script(foreign_nets.small())
    one = adopted(tmp_path, content, *small_options()).read_bytes()
    assert one == adopted(tmp_path, content, *small_options()).read_bytes()


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ("--stride", "does not say stride; say it with --stride"),
        ("--percentiles", "does not say percentiles"),
        ("--heads", "no output 'fg'"),
        ("--sigma", "no head lsig; needs a bandwidth"),
    ],
)
def test_what_a_torchscript_file_does_not_tell_is_asked_for(tmp_path, drop, says):
    words = small_options()
    start = words.index(drop)
    end = next((k for k in range(start + 1, len(words)) if words[k].startswith("--")), len(words))
    with pytest.raises(InputError, match=says):
        adopted(tmp_path, foreign_nets.script(foreign_nets.small()), *words[:start], *words[end:])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--block", "65"], r"block \[65, 65\]; needs multiples of stride"),
        (["--stride", "2", "2", "2"], "needs 2 numbers"),
        (["--percentiles", "99", "1"], "needs 0 <= low < high <= 100"),
        (["--max-offset", "0"], "needs 1 to 2000 px"),
        (["--ndim", "3", "--stride", "2"], "fails on a window"),
        (["--scores", "probabilities"], "no probabilities; say --scores logits"),
        (["--set", "seeds=0.4"], "unknown key 'seeds'; did you mean 'seed'"),
        (["--set", "identity=1"], "clustering identity needs a head id"),
        (["--set", "seed"], "--set: found 'seed', needs KEY=VALUE"),
    ],
)
def test_facts_that_do_not_fit_are_told(tmp_path, more, says):
    with pytest.raises(InputError, match=says):
        adopted(tmp_path, foreign_nets.script(foreign_nets.small()), *small_options(), *more)


def test_an_output_of_another_suffix_and_a_missing_source_are_told(tmp_path):
    with pytest.raises(OptionError, match=r"needs NAME\.safetensors"):
        adopt.main(["--source", "a.pt", "--output", "b.pt"])
    with pytest.raises(InputError, match="no such file; needs a TorchScript file"):
        adopt.main(["--source", str(tmp_path / "a.pt"), "--output", "b.safetensors"])
    with pytest.raises(InputError, match=r"a folder without rdf\.yaml"):
        adopt.main(["--source", str(tmp_path), "--output", "b.safetensors"])


def test_a_flipped_bit_of_an_adopted_model_is_found(tmp_path):
    model = adopted(tmp_path, foreign_nets.script(foreign_nets.small()), *small_options())
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(model)


def test_named_as_a_model_a_package_says_what_to_do(tmp_path):
    package = own_package(tmp_path, 2)
    for path in (package, tmp_path):
        with pytest.raises(InputError, match=r"adopt\.py --source .* --output .*\.safetensors"):
            checkpoint.read_meta(checkpoint.resolve(path, None))


def test_an_adopted_model_tells_its_numbers(tmp_path):
    model = adopted(tmp_path, foreign_nets.script(foreign_nets.small()), *small_options())
    meta = checkpoint.read_meta(model)
    assert (meta["ndim"], meta["stride"], meta["block"]) == (2, [2, 2], [64, 64])
    assert (meta["radius"], meta["normalize"]["percentiles"]) == ([2, 2], [1.0, 99.8])
    assert meta["warnings"] == []
