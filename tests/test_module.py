"""The workflow as a module of another one, in another folder."""

import json
import subprocess
import sys

from runs import REPOSITORY, write_header_model, write_image, write_table

SNAKEFILE = f"""
module iaunet:
    snakefile: "{REPOSITORY}/Snakefile"
    config: config["segmentation"]


use rule * from iaunet as iaunet_*


rule count:
    default_target: True
    input:
        "results/summary.csv",
    output:
        "counted.txt",
    shell:
        "wc -l < {{input}} > {{output}}"


onstart:
    iaunet.onstart()


onerror:
    iaunet.onerror()
"""
RULES = ("tile", "infer", "cluster", "stitch", "measure", "report", "summarize")


def write_outer(folder, **segmentation):
    """Write another workflow, with a config and an image of its own."""
    (folder / "outer/workflow").mkdir(parents=True)
    (folder / "outer/workflow/Snakefile").write_text(SNAKEFILE)
    run = folder / "run"
    run.mkdir()
    write_image(run / "a.tif")
    write_header_model(run / "m.safetensors")
    write_table(run / "t.csv", [{"image": "a", "path": "a.tif"}])
    settings = {"images": "t.csv", "model": "./m.safetensors", "diameter_px": "native"}
    config = {"own": 1, "segmentation": {**settings, **segmentation}}
    (run / "outer.json").write_text(json.dumps(config))
    return run


def snakemake(run, *options):
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", "outer.json"]
    command += ["--snakefile", "../outer/workflow/Snakefile", *options]
    return subprocess.run(command, cwd=run, capture_output=True, text=True, timeout=300)


def test_rules_of_the_module_make_what_another_workflow_needs(tmp_path):
    run = write_outer(tmp_path, tiling={"core_px": [32, 32]})
    planned = snakemake(run, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    for rule in RULES:
        assert f"rule iaunet_{rule}:" in planned.stdout + planned.stderr
    done = snakemake(run, "results/a/steps/tiles.json")
    assert done.returncode == 0, done.stderr
    # Its own setting, and the defaults of the rest.
    tiles = json.loads((run / "results/a/steps/tiles.json").read_text())
    assert tiles["core"] == [32, 32]
    assert tiles["percentiles"] == [1, 99.8]
    assert not list((tmp_path / "outer").rglob("results"))


def test_a_mistake_in_the_config_of_the_module_is_told_as_always(tmp_path):
    wrong = snakemake(write_outer(tmp_path, modle="x"), "--dry-run")
    assert wrong.returncode != 0
    assert "config, modle: unknown key; did you mean 'model'?" in wrong.stderr + wrong.stdout


def test_every_rule_says_in_a_line_what_it_does(tmp_path):
    listed = snakemake(write_outer(tmp_path), "--list-rules")
    lines = [line for line in listed.stdout.splitlines() if line.startswith("iaunet_")]
    assert len(lines) > len(RULES)
    for line in lines:
        assert line.endswith(".)"), line
