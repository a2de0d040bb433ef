from pathlib import Path

from snakemake.utils import min_version

min_version("9.20")


# The config of the working directory, when it has its own; over it what the command line says with
# --configfile and --config; under it the defaults, which common.smk puts there.
if Path("config.yaml").is_file():

    configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/scheduler.smk"
include: "workflow/rules/slurm.smk"
include: "workflow/rules/ask.smk"
include: "workflow/rules/warm.smk"
include: "workflow/rules/tile.smk"
include: "workflow/rules/segment.smk"
include: "workflow/rules/stitch.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/ablation.smk"


report: "workflow/report/workflow.rst"


rule all:
    """Run everything for all images of the table; the default."""
    default_target: True
    input:
        run_results,


onstart:
    check_cluster()
    note_run()
    keep_jobs()
    start_warm()


onsuccess:
    stop_warm()


onerror:
    stop_warm()
    summarize_failed_run()
