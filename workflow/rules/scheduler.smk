"""Keep Snakemake's scheduler quick with thousands of jobs."""

import heapq
import threading

from snakemake.scheduling.job_scheduler import JobScheduler

AT_ONCE = 200


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
    """Return the jobs to choose from, at most `AT_ONCE`: late steps first, then the table's order.

    Every round asks for the sizes of all inputs of all of them.
    """
    jobs = most_urgent.among(scheduler)
    return heapq.nlargest(AT_ONCE, jobs, key=lambda job: (job.priority, -job.jobid))


# Both are no promise of Snakemake's; a version that has them no more goes without.
if hasattr(JobScheduler, "_schedule_reevalutation"):
    JobScheduler._schedule_reevalutation = look_again
if isinstance(vars(JobScheduler).get("open_jobs"), property):
    found = JobScheduler.open_jobs.fget
    # This file may be read twice in one process.
    most_urgent.among = getattr(found, "among", found)
    JobScheduler.open_jobs = property(most_urgent)
