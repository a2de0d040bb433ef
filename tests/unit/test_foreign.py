"""TorchScript files: what is refused before they run, and how heads are read."""

import io
import zipfile

import pytest
import torch
from torch import nn

import foreign_nets
from foreign_nets import made
from iaunet import foreign
from iaunet.errors import InputError


def test_code_that_writes_files_is_refused_before_it_runs(tmp_path):
    net = foreign_nets.small(middle=foreign_nets.Writes(tmp_path / "pwned"))
    with pytest.raises(InputError, match=r"its code uses torch\.save"):
        made(foreign_nets.script(net))
    assert not (tmp_path / "pwned").exists()


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as found:
        for name, text in members.items():
            found.writestr(name, text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a zip", "damaged, or not a TorchScript file"),
        (archive(**{"a/data.pkl": "x"}), "a file of weights"),
        (archive(**{"a/code/m.py": "x = ops.image.read_file(y)"}), r"uses ops\.image"),
        (archive(**{"a/code/m.py": "def __setstate__(self):"}), "uses __setstate__"),
        (archive(**{"a/code/m.py": "y = torch.from_file(x)"}), r"uses torch\.from_file"),
        (archive(**{"a/code/m.py": "y = 1"}), "not readable as TorchScript"),
        (archive(**{"a/code/m.py": " " * (foreign.MAX_CODE + 1)}), "unpacks to"),
    ],
    ids=["no zip", "weights", "library", "setstate", "from_file", "no network", "bomb"],
)
def test_what_is_no_plain_network_is_refused(content, says):
    with pytest.raises(InputError, match=says):
        foreign.load(content, "net.pt")


def test_a_truncated_file_is_refused():
    content = foreign_nets.script(foreign_nets.small())
    with pytest.raises(InputError, match=r"net\.pt: damaged"):
        foreign.load(content[: len(content) // 2], "net.pt")


def test_weights_that_are_not_finite_are_refused():
    net = foreign_nets.small()
    nn.init.constant_(net.last.weight, float("nan"))
    with pytest.raises(InputError, match=r"the weights 'last.weight' hold NaN"):
        made(foreign_nets.script(net))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": {"fg": "0:0", "seed": "0:1"}}, "no head off; needs fg, seed and off"),
        ({"heads": {"fg": "0:0", "seed": "0:1", "off": "0:2-4"}}, "no channel 4 in output '0'"),
        ({"heads": {"fg": "0:0", "seed": "0:1", "off": "0:2"}}, "head off has 1 channels, needs 2"),
        ({"heads": {"fg": "0:0", "seed": "1", "off": "0:2-3"}}, "no output '1'; the network has 0"),
        ({"heads": {"fg": "0:0", "seed": "0:1", "off": "0:x"}}, "found '0:x', needs OUTPUT"),
        ({"sigma": None}, "no head lsig; needs a bandwidth"),
        ({"scores": "odds"}, "'odds'; needs logits or probabilities"),
        ({"stride": (6, 6)}, "needs powers of two"),
    ],
)
def test_a_contract_that_does_not_fit_is_told(change, says):
    with pytest.raises(InputError, match=says):
        made(foreign_nets.script(foreign_nets.small()), **change)(torch.rand(1, 1, 8, 8))


def test_outputs_are_those_of_the_network_cut_to_the_largest_values():
    net = foreign_nets.small()
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        raw = net(x)
        found = made(foreign_nets.script(net), max_offset=(1.0, 20.0))(x)
    assert torch.equal(found.fg, raw[:, :1])
    assert torch.equal(found.seed, raw[:, 1:2])
    assert torch.equal(found.off[:, :1], raw[:, 2:3].clamp(-1, 1))
    assert torch.equal(found.lsig, torch.full_like(found.off, 4.0).log())
    assert found.id.shape == (1, 16, 8, 8)
    assert not found.id.any()


def test_probabilities_become_logits():
    net = nn.Sequential(foreign_nets.small(), nn.Sigmoid())
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        found = made(foreign_nets.script(net), scores="probabilities")(x)
        torch.testing.assert_close(found.fg.sigmoid(), net(x)[:, :1])


def test_a_network_that_was_adopted_cannot_be_trained():
    with pytest.raises(InputError, match="cannot be trained"):
        _ = made(foreign_nets.script(foreign_nets.small())).options


def test_outputs_are_found_by_name_and_by_index():
    a, b = torch.rand(2), torch.rand(2)
    assert list(foreign.named_outputs(a)) == ["0"]
    assert list(foreign.named_outputs({"fg": a, "text": "x"})) == ["fg"]
    assert foreign.named_outputs((a, None, b)).keys() == {"0", "2"}
