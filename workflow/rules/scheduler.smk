"""Keep Snakemake's scheduler quick with thousands of jobs."""

import gc
import heapq
import threading
from collections.abc import Sequence

from snakemake.scheduling.job_scheduler import JobScheduler

AT_ONCE = 200
AT_ONCE_WARM = 16


def look_again(scheduler, seconds):
    """Have the scheduler look for jobs again, once, however often that is asked for meanwhile.

    Snakemake itself (9.27) starts a timer in every round, and every timer starts a round: while
    jobs wait, rounds become more and more, and with some hundred images take a core of their own.
    """
    if vars(scheduler).get("looks_again"):
        return

    def look():
        scheduler.looks_again = False
        scheduler._open_jobs.release()

    scheduler.looks_again = True
    timer = threading.Timer(seconds, look)
    timer.daemon = True
    timer.start()


def most_urgent(scheduler):
    """Return the jobs to choose from: late steps first, then the table's order.

    Every round weighs all of them. Jobs of small images are alike, and of those that do not start
    now the next round has some.
    """
    jobs = most_urgent.among(scheduler)
    cores = workflow.resource_settings.cores or 1
    at_once = max(AT_ONCE_WARM, 2 * cores) if is_warm() else AT_ONCE
    return heapq.nlargest(at_once, jobs, key=lambda job: (job.priority, -job.jobid))


async def sizes_of_new(scheduler, jobs):
    """Have the scheduler look up the sizes of inputs that it does not know yet, not of all."""

    def unknown():
        return [job for job in jobs if not all(path in known for path in job.input)]

    known = scheduler._input_sizes
    await sizes_of_new.look_up(scheduler, unknown())
    if unknown():  # it has forgotten some, so that they do not become too many
        await sizes_of_new.look_up(scheduler, jobs)


class Listed(Sequence):
    """Jobs that are looked for when they are asked for; the greedy scheduler never asks."""

    def __init__(self, jobs):
        self.jobs = jobs

    def __iter__(self):
        return iter(self.jobs())

    def __len__(self):
        return len(self.jobs())

    def __getitem__(self, index):
        return self.jobs()[index]


def remaining(scheduler):
    """Return all jobs that are left, which takes long with thousands."""
    return Listed(lambda: remaining.found(scheduler))


def keep_jobs():
    """Have Python collect garbage without looking at the jobs, which stay; it looks at all of them."""
    gc.collect()
    gc.freeze()


# None is a promise of Snakemake's; a version that has them no more goes without.
if hasattr(JobScheduler, "_schedule_reevalutation"):
    JobScheduler._schedule_reevalutation = look_again
if isinstance(vars(JobScheduler).get("open_jobs"), property):
    found = JobScheduler.open_jobs.fget
    # This file may be read twice in one process.
    most_urgent.among = getattr(found, "among", found)
    JobScheduler.open_jobs = property(most_urgent)
if isinstance(vars(JobScheduler).get("remaining_jobs"), property):
    found = JobScheduler.remaining_jobs.fget
    remaining.found = getattr(found, "found", found)
    JobScheduler.remaining_jobs = property(remaining)
if hasattr(JobScheduler, "update_input_sizes"):
    found = JobScheduler.update_input_sizes
    sizes_of_new.look_up = getattr(found, "look_up", found)
    JobScheduler.update_input_sizes = sizes_of_new
