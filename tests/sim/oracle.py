"""The invariants that hold when everything is quiet, I1 to I10 of the failure model."""

import sqlite3
from typing import Any

from sim.clients import FINAL, NOT_FOUND, OK, check_view
from sim.http_client import BrokenError, request
from sim.stock_worker import StockMachine

# Jobs of `runsync` are kept for 60 s after their end.
SYNC_RETENTION_SECONDS = 55.0


def unrest(scenario: Any, clients: list[Any]) -> list[str]:
    """Return what is not at rest yet: clients, jobs, slots, memory."""
    found = [f"{len(clients)} clients wait"] if clients else []
    parts = scenario.proxy.parts
    if not scenario.proxy.is_up or parts is None:
        return [*found, "the proxy is down"]
    if len(parts.interactive):
        found.append(f"{len(parts.interactive)} interactive jobs")
    counts = scenario.counts()
    if counts.in_queue or counts.in_progress:
        found.append(f"jobs: {counts.in_queue} in the queue, {counts.in_progress} in progress")
    found += [f"fleet: {why}" for why in _fleet_unrest(scenario, parts)]
    for budget in ("bodies", "answers", "passing"):
        if used := getattr(parts, budget).used:
            found.append(f"I10: {used} bytes of {budget} are reserved")
    return found


def _fleet_unrest(scenario: Any, parts: Any) -> list[str]:
    found = []
    known = {worker.id: worker for worker in parts.fleet}
    for machine in scenario.workers:
        worker = known.pop(machine.name, None)
        if worker is None or worker.port is None:
            found.append(f"{machine.name} is not connected")
            continue
        if worker.holds or worker.reserved or worker.light_reserved:
            found.append(f"{machine.name} holds {list(worker.holds)}, reserved {worker.reserved}")
        if worker.slots != machine.slots or worker.light_held:
            found.append(f"{machine.name} has {worker.slots} slots, {worker.light_held} light")
        if machine.engine is not None and machine.engine.running:
            found.append(f"the engine of {machine.name} runs {machine.engine.running}")
        if isinstance(machine, StockMachine):
            if machine.jobs:
                found.append(f"{machine.name} has {list(machine.jobs)}")
            continue
        if machine.runtime is not None and machine.runtime._runs:
            found.append(f"the runtime of {machine.name} has {list(machine.runtime._runs)}")
        if machine.runtime is not None and machine.runtime._ended.has_unconfirmed:
            found.append(f"{machine.name} has runs whose end was not acknowledged")
    return [*found, *(f"unknown worker {name}" for name in known)]


async def check_end(scenario: Any) -> None:
    """Check every job that was acknowledged, and the counters."""
    for job in scenario.jobs:
        await _check_job(scenario, job)
    if scenario.proxy.is_durable:
        _check_counts(scenario)


async def _check_job(scenario: Any, job: Any) -> None:
    world = scenario.world
    other = "two" if job.plan.owner == "one" else "one"
    try:
        foreign = await request("GET", f"/v2/default/status/{job.id}", other)
        await foreign.json()
        response = await request("GET", f"/v2/default/status/{job.id}", job.plan.owner)
        answer = await response.json()
    except BrokenError as error:
        world.violate(f"the oracle has no answer: {error}")
        return
    if foreign.status != NOT_FOUND:
        world.violate(f"I8: job {job.id} is visible to owner {other}")
    if response.status == NOT_FOUND:
        age = world.loop.time() - job.ended_at
        if not (job.plan.kind == "runsync" and job.end and age > SYNC_RETENTION_SECONDS):
            world.violate(f"I1: job {job.id} of {job.plan.name} is unknown at the end")
    elif response.status != OK:
        world.violate(f"job {job.id}: {response.status} {answer}")
    elif answer["status"] not in FINAL:
        world.violate(f"I6: job {job.id} is {answer['status']} at the end")
    else:
        check_view(world, job, answer)


def _check_counts(scenario: Any) -> None:
    """Compare the counters with a recount of the rows (I7)."""
    database: sqlite3.Connection = scenario.proxy.parts.store._database._reader._db
    rows = dict(database.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall())
    ended = dict(database.execute("SELECT name, number FROM ended").fetchall())
    scenario.world.trace(f"rows {rows} ended {ended}")
    live = {status: number for status, number in rows.items() if status not in FINAL}
    if live:
        scenario.world.violate(f"I7: rows that are not final: {live}")
    ends = {status: ended.get(status, 0) for status in FINAL}
    # Jobs of `runsync` may have been forgotten.
    may_lack = scenario.world.loop.time() > SYNC_RETENTION_SECONDS
    for status, number in ends.items():
        found = rows.get(status, 0)
        has_retries = any(job.retries for job in scenario.jobs)
        may_differ = may_lack or has_retries
        if found > number or (found < number and not may_differ):
            scenario.world.violate(f"I2: {number} ends of {found} jobs as {status}")
    counts = scenario.counts()
    counted = (counts.completed, counts.failed, counts.cancelled, counts.timed_out)
    if counted != tuple(ends.values()):
        scenario.world.violate(f"I7: the index counts {counted}, the file {ends}")
