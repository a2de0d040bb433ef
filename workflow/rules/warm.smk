"""Fork the steps of small images from a process that has their libraries in memory."""

import math
import shlex
import subprocess
import tempfile

from snakemake.shell import shell

SMALL_PX = 4_000_000
FEW_JOBS = 12


def is_worth_warming():
    """Tell whether there are enough jobs here, and all of small images.

    `benchmarks/` has the process that asks, not the one that works: seconds are right, memory is
    not; so large images, where one looks for it, start as ever.
    """
    if workflow.non_local_exec or workflow.deployment_settings.deployment_method:
        return False
    if not Path(workflow.main_snakefile).samefile(REPOSITORY / "Snakefile"):
        return False  # a module: the `python` of other rules may be another one
    jobs = [job for job in workflow.dag.needrun_jobs() if "image" in job.wildcards_dict]
    images = {job.wildcards_dict["image"] for job in jobs}
    pixels = [math.prod(IMAGES[image]["size"]["shape"]) for image in images]
    return len(jobs) >= FEW_JOBS and max(pixels) <= SMALL_PX


def start_warm():
    """Start `warm.py`, and have `python` ask it; where there is none, python starts by itself."""
    if not is_worth_warming():
        return
    address = f"{tempfile.mkdtemp(prefix='iaunet-')}/socket"
    with open(".snakemake/iaunet/warm.log", "w") as log:
        # It ends with this process at the latest: its input does.
        start_warm.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", step("warm.py"), address],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    words = [sys.executable, "-I", "-S", os.path.abspath(step("start.py")), address]
    ask = (
        " ".join(shlex.quote(word) for word in words)
        .replace("{", "{{")
        .replace("}", "}}")
    )
    shell.prefix(f'set -euo pipefail; python() {{{{ exec {ask} "$@"; }}}}; ')


def stop_warm():
    """End what `start_warm` has started."""
    if hasattr(start_warm, "process"):
        start_warm.process.communicate()
