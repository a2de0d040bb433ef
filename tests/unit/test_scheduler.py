"""What is changed in Snakemake's scheduler changes its time, not what it does."""

import asyncio
import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

FILE = Path(__file__).parents[2] / "workflow/rules/scheduler.smk"
CHANGED = ("_schedule_reevalutation", "open_jobs", "remaining_jobs", "update_input_sizes")


@pytest.fixture(params=[False, True], ids=["cold", "warm"])
def changed(request, monkeypatch):
    """Return the functions of the file; Snakemake's own come back after the test."""
    for name in CHANGED:
        monkeypatch.setattr(JobScheduler, name, vars(JobScheduler)[name])
    settings = SimpleNamespace(resource_settings=SimpleNamespace(cores=2))
    names = {"workflow": settings, "is_warm": lambda: request.param}
    for _ in range(2):  # as when a module reads it, too
        exec(compile(FILE.read_text(), FILE, "exec"), names)
    return names


def job(jobid, priority=0, inputs=()):
    return SimpleNamespace(jobid=jobid, priority=priority, input=inputs)


def scheduler_of(ready):
    scheduler = JobScheduler.__new__(JobScheduler)
    dag = SimpleNamespace(
        ready_jobs=ready, needrun_jobs=lambda: iter(ready), finished=lambda job: False
    )
    scheduler.workflow = SimpleNamespace(dag=dag)
    scheduler.running, scheduler.failed = [], []
    return scheduler


def test_late_steps_come_first_and_then_those_that_are_first_in_the_table(changed):
    jobs = [job(k, priority=k % 3) for k in range(1000)]
    found = scheduler_of(jobs).open_jobs
    assert 4 <= len(found) < len(jobs)
    assert found == sorted(jobs, key=lambda one: (-one.priority, one.jobid))[: len(found)]


def test_jobs_are_no_garbage_to_look_for(changed):
    changed["keep_jobs"]()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_the_jobs_that_are_left_are_those_of_snakemake(changed):
    jobs = [job(k) for k in range(5)]
    left = scheduler_of(jobs).remaining_jobs
    assert (list(left), len(left), bool(left), left[1]) == (jobs, 5, True, jobs[1])
    assert not scheduler_of([]).remaining_jobs


@pytest.mark.parametrize("forgets", [False, True])
def test_the_sizes_of_all_inputs_are_known_and_looked_up_once(changed, forgets):
    asked = []

    async def look_up(scheduler, jobs):
        paths = {path for job in jobs for path in job.input}
        asked.extend(sorted(paths))
        scheduler._input_sizes.update(dict.fromkeys(paths, 1))
        if forgets:
            for path in set(scheduler._input_sizes) - paths:
                del scheduler._input_sizes[path]

    changed["sizes_of_new"].look_up = look_up
    scheduler = SimpleNamespace(_input_sizes={})
    first, second = job(1, inputs=("a", "b")), job(2, inputs=("b", "c"))
    for jobs in ([first], [first, second]):
        asyncio.run(changed["sizes_of_new"](scheduler, jobs))
        assert {path for job in jobs for path in job.input} <= set(scheduler._input_sizes)
    if not forgets:
        assert asked == ["a", "b", "b", "c"]
        asyncio.run(changed["sizes_of_new"](scheduler, [first, second]))
        assert asked == ["a", "b", "b", "c"]
