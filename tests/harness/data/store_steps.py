"""Operations on a store, with default arguments."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from harness.data.jobs import ALICE, HERE
from proxy.jobs.lifecycle import Event
from proxy.jobs.model import EndpointId, Job, JobError, JobId, Millis, Owner, WorkerId
from proxy.store.base import JobStore
from proxy.store.memory import MemoryStore
from proxy.store.sqlite.store import SqliteStore
from proxy.system import SystemDisk, ThreadRunner


def sqlite_store(path: Path) -> SqliteStore:
    """Return a SQLite store on the real disk, with a writer thread."""
    return SqliteStore(path, SystemDisk(), ThreadRunner)


STORES: dict[str, Callable[[Path], JobStore]] = {
    "memory": lambda _: MemoryStore(),
    "sqlite": lambda folder: sqlite_store(folder / "jobs.db"),
}
"""The stores that the contract tests check: a new store needs a line here, and no new test."""

WORKER = WorkerId("w-1")
WHY = JobError("because", "Because.")
T0 = Millis(1_000_000)
MINUTE = 60_000
# The numbers of the first and of a second run of a job. They differ from its attempts.
RUN = 7_001
LATER_RUN = 7_002


class Submit(Protocol):
    """Submits jobs with these ids at T0; `changed` overrides fields of the submissions."""

    async def __call__(self, *ids: str, **changed: Any) -> list[Job]: ...


async def take(
    store: JobStore,
    limit: int = 10,
    light_limit: int = 10,
    endpoint: EndpointId = HERE,
    now: int = T0,
    run: int = RUN,
) -> list[Job]:
    """Take jobs for `WORKER`."""
    limits = {"limit": limit, "light_limit": light_limit}
    return list(await store.take(endpoint, WORKER, now=Millis(now), run=run, **limits))


async def purge(
    store: JobStore, owner: Owner = ALICE, now: int = T0, limit: int = 1_000
) -> list[Job]:
    """Cancel all jobs of an owner that are queued now."""
    before = store.next_sequence()
    purged: list[Job] = []
    while page := await store.purge(HERE, owner, Millis(now), WHY, before=before, limit=limit):
        purged += page
    return purged


async def settle(
    store: JobStore, job: Job | str, event: Event, now: int = T0 + 5_000, **more: Any
) -> Job | None:
    """Apply an event; return None if it did not apply."""
    job_id = JobId(job) if isinstance(job, str) else job.id
    return await store.settle(job_id, event, now=Millis(now), **more)


async def ended(
    store: JobStore, job: Job | str, event: Event, now: int = T0 + 5_000, **more: Any
) -> Job:
    """Apply an event that must succeed."""
    after = await settle(store, job, event, now, **more)
    assert after is not None
    return after


async def found(store: JobStore, job_id: str) -> Job:
    """Return a job that must exist."""
    job = await store.find(JobId(job_id))
    assert job is not None
    return job


def ids(jobs: Iterable[Job]) -> list[str]:
    return [job.id for job in jobs]
