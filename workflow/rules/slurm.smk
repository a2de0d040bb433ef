"""What is asked of SLURM, checked before the first job is submitted."""


def asked_jobs():
    """Return what the jobs ask for, each kind once, at their first and at their last attempt."""
    found = {}
    for job in workflow.dag.needrun_jobs():
        for attempt in {1, 1 + max(0, job.restart_times)} if not job.is_local else ():
            resources = job.rule.expand_resources(job.wildcards, job.input, attempt)
            asked = {
                "rule": job.rule.name,
                "threads": resources.get("_cores", 1),
                "mem_mb": resources.get("mem_mb", 0),
                "runtime": resources.get("runtime", 0),
                "attempt": attempt,
                "partition": resources.get("slurm_partition", ""),
                "gpus": int("gpu" in str(resources.get("gres", "")))
                or int(resources.get("gpu", 0) or 0),
            }
            found[tuple(asked.values())] = asked
    return list(found.values())


def check_cluster():
    """Refuse what SLURM waits for for ever, or what loses work; warn of what may."""
    settings = workflow.executor_settings
    if type(settings).__module__ != "snakemake_executor_plugin_slurm":
        return
    asked = {
        "jobs": asked_jobs(),
        "arrays": settings.array_jobs or "",
        "groups": sorted(workflow.group_settings.overwrite_groups),
        "status_command": settings.status_command or "",
        "no_requeue": bool(settings.no_requeue),
    }
    command = [sys.executable, step("preflight.py"), "--asked", "-"]
    text = json.dumps(asked, default=str)
    result = subprocess.run(command, input=text, capture_output=True, text=True)
    if result.returncode != 0:
        raise WorkflowError(f"the cluster:\n{result.stderr.strip()}")
    for line in result.stderr.splitlines():
        logger.warning(line)
