"""Packages are read from inside only, and what cannot be reproduced in tiles is refused."""

import zipfile

import pytest
import yaml

import foreign_nets
from iaunet import bioimageio
from iaunet.errors import InputError

CONTENT = b"bytes of a network"


@pytest.fixture
def write(tmp_path):
    def write(folder=False, content=CONTENT, **changes):
        described = foreign_nets.description(CONTENT, **changes)
        if not folder:
            return foreign_nets.package(tmp_path / "p.zip", content, described)
        (tmp_path / "p").mkdir()
        (tmp_path / "p/rdf.yaml").write_text(yaml.safe_dump(described))
        (tmp_path / "p/net.pt").write_bytes(content)
        return tmp_path / "p"

    return write


@pytest.mark.parametrize("folder", [False, True])
def test_a_package_tells_how_its_network_is_run(write, folder):
    path = write(folder, config={"iaunet": {"max_offset": 20, "stride": [4, 4]}})
    assert bioimageio.is_package(path)
    found = bioimageio.read(path)
    assert found.content == CONTENT
    assert found.outputs == ["fg", "seed", "off", "lsig", "id"]
    assert found.facts == {
        "ndim": 2,
        "stride": [4, 4],
        "halo": [16, 16],
        "percentiles": [1.0, 99.8],
        "clip": [None, None],
        "max_offset": 20,
    }
    assert found.origin["license"] == "CC-BY-4.0"


def test_format_0_5_says_the_same(write):
    axes = [{"type": "batch"}, {"type": "channel", "channel_names": ["raw"]}]
    space = [
        {"type": "space", "id": axis, "size": {"min": 16, "step": 8}, "halo": 16} for axis in "zyx"
    ]
    kwargs = {"axes": ["channel", *"zyx"], "min_percentile": 0.1, "max_percentile": 99.9}
    steps = [
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        {"id": "scale_range", "kwargs": kwargs},
        {"id": "clip", "kwargs": {"min": 0, "max": 1}},
        {"id": "scale_linear", "kwargs": {"gain": 2.0, "offset": -1.0}},
    ]
    path = write(
        inputs=[{"id": "raw", "axes": [*axes, *space], "preprocessing": steps}],
        outputs=[
            {"id": "fg", "axes": [*axes, *space], "postprocessing": [{"id": "sigmoid"}]},
            {"id": "rest", "axes": [*axes, *space]},
        ],
    )
    assert bioimageio.read(path).facts == {
        "ndim": 3,
        "stride": [8, 8, 8],
        "halo": [16, 16, 16],
        "percentiles": [0.1, 99.9],
        "clip": [0, 1],
        "gain": 2.0,
        "shift": -1.0,
        "scores": "logits",
    }


def with_input(**changes):
    return {"inputs": [foreign_nets.description(CONTENT)["inputs"][0] | changes]}


def step(name, **kwargs):
    return with_input(preprocessing=[{"name": name, "kwargs": kwargs}])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (step("zero_mean_unit_variance", mode="per_sample"), "'zero_mean_unit_variance'"),
        (step("scale_linear", gain=0.01), "'scale_linear'"),
        (step("scale_range", mode="per_dataset"), "over a data set"),
        (step("scale_range", mode="per_sample", axes="x"), "over axes x; needs y, x"),
        (with_input(axes="byxc"), "input axes b y x c"),
        (with_input(shape=[1, 3, 256, 256]), "takes 3 channels"),
        ({"inputs": []}, "0 inputs; needs one"),
        ({"outputs": None}, "not a model description"),
        ({"weights": {"pytorch_state_dict": {"source": "net.pt"}}}, "needs torchscript weights"),
        ({"weights": {"torchscript": {"source": "../net.pt"}}}, "'../net.pt' is no file of"),
        ({"weights": {"torchscript": {"source": "/etc/passwd"}}}, "is no file of the package"),
        ({"weights": {"torchscript": {"source": "https://a.b/n.pt"}}}, "is no file of the package"),
        ({"weights": {"torchscript": {"source": "other.pt"}}}, "no file 'other.pt'"),
        ({"config": {"iaunet": [1]}}, "config, iaunet: needs a mapping"),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_what_cannot_be_run_exactly_or_safely_is_refused(write, folder, changes, says):
    with pytest.raises(InputError, match=says):
        bioimageio.read(write(folder, **changes))


def test_another_checksum_is_refused(write):
    with pytest.raises(InputError, match=r"'net.pt' has sha256 .*damaged or exchanged"):
        bioimageio.read(write(content=CONTENT[:-1]))


def test_a_link_out_of_the_folder_is_refused(write, tmp_path):
    path = write(folder=True)
    (path / "net.pt").rename(tmp_path / "outside")
    (path / "net.pt").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="leads out of the folder"):
        bioimageio.read(path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(bioimageio, "MAX_DESCRIPTION", 1000)
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rdf.yaml", " " * 1001)
    with pytest.raises(InputError, match="unpacks to more than 1000 bytes"):
        bioimageio.read(tmp_path / "p.zip")


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object/apply:os.system ['true']", ""])
def test_a_description_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "rdf.yaml").write_text(text)
    with pytest.raises(InputError, match=r"rdf.yaml"):
        bioimageio.read(tmp_path)
