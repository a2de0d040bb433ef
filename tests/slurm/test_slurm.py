"""The workflow on a real SLURM: two nodes, a pretend GPU, and everything that goes wrong there."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tifffile

from iaunet import synthetic
from runs import REPOSITORY, write_table

CLUSTER = Path(__file__).with_name("cluster.sh")
NOT_INSTALLED = 3
"""Exit status of cluster.sh where the packages cannot be had."""
IMPATIENT = (
    "--slurm-init-seconds-before-status-checks=1",
    "--seconds-between-status-checks=2",
    "--latency-wait=10",
    "--set-threads=infer=1",
)
"""Small jobs on nodes of one CPU."""


@pytest.fixture(scope="module")
def slurm():
    """Start SLURM; skip where it cannot be installed."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs root on Debian to install and start SLURM")
    started = subprocess.run(["bash", CLUSTER, "start"], capture_output=True, text=True)
    if started.returncode == NOT_INSTALLED:
        pytest.skip(f"Debian's packages of SLURM cannot be installed: {started.stderr[-300:]}")
    try:
        assert started.returncode == 0, started.stderr
        yield
    finally:
        subprocess.run(["bash", CLUSTER, "stop"], check=True)


def write_run(folder, rng, shape=(200, 180)):
    """Write an image in two batches, its table and its config."""
    folder.mkdir()
    image, _ = synthetic.draw_nuclei(shape, rng, diameter_px=22)
    tifffile.imwrite(folder / "a.tif", image)
    write_table(folder / "images.csv", [{"image": "a", "path": "a.tif"}])
    tiling = "tiling: {core_px: [112, 96], tiles_per_batch: 2}"
    (folder / "config.yaml").write_text(
        f"images: images.csv\nmodel: nuclei-2d\ndiameter_px: native\n{tiling}\n"
    )
    return folder


def command(folder, *options):
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile"]
    profile = ["--profile", REPOSITORY / "workflow/profiles/slurm", *IMPATIENT, *options]
    return [str(word) for word in [*snakemake, "--directory", folder, *profile]]


def locally(folder):
    """Run the same images without a cluster; return the results."""
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile"]
    done = subprocess.run(
        [*snakemake, "--directory", folder, "--cores", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return results(folder)


def results(folder):
    """Return the bytes of every file that does not tell of time or machine."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "results/a").glob("**/*"))
        if path.is_file()
        and not path.name.startswith(".snakemake")
        and ("a.ome.zarr" in path.parts or path.suffix in (".csv", ".parquet"))
    }


def said(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def jobs(column="State"):
    """Return a column of all jobs that SLURM accounted for."""
    return said("sacct", "-X", "-n", "-P", f"--format={column}").split("\n")[:-1]


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.5)
    return found


def running(rule):
    """Return the number of a running job of a rule, or nothing."""
    lines = said("squeue", "-h", "-t", "RUNNING", "-o", "%i %k").splitlines()
    return next((line.split()[0] for line in lines if f"rule_{rule}" in line), None)


def test_jobs_that_are_cancelled_or_exceed_their_memory_are_done_again(slurm, tmp_path, rng):
    folder = write_run(tmp_path / "cluster", rng)
    memory = "infer:mem_mb=250 + 4000 * (attempt - 1)"  # less than Python with torch takes
    gpu = "infer:gres='gpu:1'"
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            command(folder, "--set-resources", memory, gpu), stdout=log, stderr=log
        )
        said("scancel", wait_for(lambda: running("cluster")))
        assert run.wait(timeout=900) == 0, (tmp_path / "log").read_text()
    states = jobs()
    assert sum(state.startswith("CANCELLED") for state in states) >= 1
    assert "OUT_OF_MEMORY" in states or "FAILED" in states
    assert any("gres/gpu=1" in text for text in jobs("AllocTRES"))
    assert results(folder) == locally(write_copy(folder, tmp_path / "local"))


def write_copy(folder, target):
    target.mkdir()
    for name in ("a.tif", "images.csv", "config.yaml"):
        shutil.copy(folder / name, target)
    return target


def test_a_killed_driver_goes_on_with_the_same_command(slurm, tmp_path, rng):
    folder = write_run(tmp_path / "cluster", rng)
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command(folder), stdout=log, stderr=log)
        wait_for(lambda: running("infer"))
        run.kill()
        run.wait()
    subprocess.run(["scancel", "-u", "root"], check=True)
    wait_for(lambda: not said("squeue", "-h").strip())
    again = subprocess.run(command(folder), capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    assert "was killed; going on" in again.stderr
    assert results(folder) == locally(write_copy(folder, tmp_path / "local"))
