"""The reason why a job is still queued, as a sentence for its client."""

from collections.abc import Sequence

from proxy.jobs.model import Job, Millis
from proxy.jobs.policy import LOW_PRIORITY_WAIT_MILLIS, yields
from proxy.service.fleet import Worker


def reason(job: Job, workers: Sequence[Worker], ahead: int, now: Millis) -> str:
    """Return the reason: no workers, no ready workers, jobs before it, or no free slot."""
    if not workers:
        return "No worker is connected."
    ready = [worker for worker in workers if worker.is_ready]
    if not ready:
        return f"{_count(len(workers), 'worker')} connected, none of them ready yet."
    later = (
        " Jobs of normal priority go first until it has waited for "
        f"{LOW_PRIORITY_WAIT_MILLIS // 1000} s."
        if yields(job, now)
        else ""
    )
    if ahead:
        return f"Behind {_count(ahead, 'job')} in the queue.{later}"
    if limit := _limit(ready, light=job.submission.light):
        return f"Held by a limit: {limit}.{later}"
    return "Next in line."


def _limit(ready: Sequence[Worker], *, light: bool) -> str:
    """Return the limit that is reached, or an empty text. A Runpod worker can have a free slot
    between two polls.
    """
    loads = [worker.load(light=light) for worker in ready]
    taken, slots = sum(load.taken for load in loads), sum(load.slots for load in loads)
    if not slots or taken < slots:
        return ""
    name, whose = "light slot" if light else "slot", _count(len(ready), "worker")
    return (
        f"the only {name} of {whose} is taken"
        if slots == 1
        else f"all {slots} {name}s of {whose} are taken"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"
