"""Have the steps of small images done by processes that have their libraries in memory."""

import math
import shlex
import subprocess
import tempfile
import time
from collections import Counter

from snakemake.shell import shell

SMALL_PX = 4_000_000
FEW_JOBS = 12


def small_images():
    """Return the images when there are enough jobs here, and all of small images; else none.

    `benchmarks/` has their seconds, not their memory; so large images, where one looks for it,
    start as ever.
    """
    if workflow.non_local_exec or workflow.deployment_settings.deployment_method:
        return []
    if not Path(workflow.main_snakefile).samefile(REPOSITORY / "Snakefile"):
        return []  # a module: the `python` of other rules may be another one
    jobs = [job for job in workflow.dag.needrun_jobs() if "image" in job.wildcards_dict]
    images = [IMAGES[job.wildcards_dict["image"]] for job in jobs]
    if len(jobs) < FEW_JOBS:
        return []
    is_small = all(math.prod(image["size"]["shape"]) <= SMALL_PX for image in images)
    return images if is_small else []


def rehearsal(images):
    """Return the words for the steps that `warm.py` does once: the commonest model and shape."""
    kinds = Counter((image["model"], *image["size"]["shape"]) for image in images)
    return [str(word) for word in kinds.most_common(1)[0][0]]


def start_warm():
    """Start `warm.py`, and have `python` ask it; where there is none, python starts by itself."""
    images = small_images()
    if not images:
        return
    address = f"{tempfile.mkdtemp(prefix='iaunet-')}/socket"
    with open(".snakemake/iaunet/warm.log", "w") as log:
        # It ends with this process at the latest: its input does.
        start_warm.process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                step("warm.py"),
                address,
                *rehearsal(images),
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # A job that finds nobody to ask starts by itself.
    while start_warm.process.poll() is None and not Path(address).exists():
        time.sleep(0.01)
    words = [sys.executable, "-I", "-S", os.path.abspath(step("start.py")), address]
    prefix = f'set -euo pipefail; python() {{ exec {shlex.join(words)} "$@"; }}; '
    shell.prefix(prefix.replace("{", "{{").replace("}", "}}"))
    ask_without_shell(address, prefix)


def is_warm():
    """Tell whether `start_warm` has started something."""
    return hasattr(start_warm, "process")


def stop_warm():
    """End what `start_warm` has started."""
    if is_warm():
        start_warm.process.communicate()
