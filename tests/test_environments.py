"""Every list of packages has the same pins."""

import re

import pytest
import yaml

from runs import REPOSITORY


def pins(lines):
    found = (re.fullmatch(r"\s*([A-Za-z0-9._-]+)==(\S+)\s*", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def lines(name):
    return (REPOSITORY / name).read_text().splitlines()


def environment(name):
    values = yaml.safe_load((REPOSITORY / "envs" / name).read_text())
    (packages,) = [item["pip"] for item in values["dependencies"] if isinstance(item, dict)]
    return pins(packages)


def test_every_requirement_is_pinned_once():
    seen = set()
    files = sorted(path.name for path in REPOSITORY.glob("requirements*.txt"))
    assert len(files) > 1
    for name in (*files, "constraints.txt"):
        wanted = [x for x in lines(name) if x and not x.startswith(("#", "-c"))]
        assert len(pins(wanted)) == len(wanted)
        assert not seen & set(pins(wanted))
        seen |= set(pins(wanted))


@pytest.mark.parametrize("name", ["cpu.yaml", "gpu.yaml"])
def test_environments_have_the_pins_of_the_requirements(name):
    required = pins(lines("requirements.txt"))
    assert environment(name).items() <= required.items()


def test_only_the_gpu_environment_has_torch_and_leaves_its_build_free():
    assert environment("gpu.yaml").keys() - environment("cpu.yaml").keys() == {"safetensors"}
    assert environment("cpu.yaml").keys() <= environment("gpu.yaml").keys()
    (free,) = re.findall(r"- torch>=(\S+)", (REPOSITORY / "envs/gpu.yaml").read_text())
    pinned = pins(lines("requirements.txt"))["torch"]
    assert [int(part) for part in free.split(".")] <= [int(part) for part in pinned.split(".")]
    assert "torch" not in (REPOSITORY / "envs/cpu.yaml").read_text()
