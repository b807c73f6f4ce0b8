"""Races about the end of a run, and about what follows it."""

import asyncio
import json

from proxy.wire.frames import (
    ALL_FRAMES,
    SENT_AGAIN,
    UNKNOWN_RUN,
    Acknowledge,
    Credit,
    End,
    Frame,
    Hold,
    Job,
    Output,
    Stop,
)
from sim.clients import FINAL, NOT_FOUND, OK
from sim.puppet import PuppetWorker, eventually
from sim.race import Operation, Prepare, Race, Result
from sim.scene import Reply, Scene

TEXTS = ["a", "b", "c"]
RUN_SECONDS = 5.0
LIFE_SECONDS = 10.0
# The time before a deadline in which a race begins, and the time that then passes.
EARLY_SECONDS = 0.1
PASSED_SECONDS = 0.4


def whole_run(job: Job) -> list[Frame]:
    """Return the frames of a run that is completed."""
    return frames_of(job.job, job.attempt)


def frames_of(job: str, attempt: int) -> list[Frame]:
    """Return the frames of a run that is completed."""
    values = [Output(job, attempt, json.dumps(text).encode()) for text in TEXTS]
    return [*values, End(job, attempt, "completed")]


def check_end(scene: Scene, shown: dict[str, object], *statuses: str) -> None:
    """Check a final status, and that a completed job has the output of one run."""
    scene.expect(shown["status"] in statuses, f"{shown} instead of {statuses}")
    if shown["status"] == "COMPLETED":
        scene.expect(shown.get("output") == TEXTS, f"the output of {shown}")


async def nothing() -> None:
    """Wait for nothing: this operation has no caller."""


async def requesting(scene: Scene, method: str, operation: str) -> Operation:
    """Return a request, whose outcome is the reply."""
    call = await scene.prepare(method, operation)
    return Operation(call.send, lambda: scene.reply(call))


def completing(worker: PuppetWorker, job: str) -> Operation:
    """Return the end of a job's first run; its outcome is that the worker may forget it."""

    def is_confirmed() -> bool:
        return any(frame.frames == ALL_FRAMES for frame in worker.found(Acknowledge, job))

    return Operation(lambda: worker.say(*frames_of(job, 1)), lambda: eventually(is_confirmed))


def expiring(scene: Scene, job: str) -> Operation:
    """Return the moment in which a deadline of a job passes that has not ended."""
    return Operation(
        lambda: scene.world.loop.pass_time(PASSED_SECONDS),
        lambda: eventually(lambda: scene.status(job) in FINAL),
    )


async def cancel_and_complete(scene: Scene) -> Race:
    job, worker = await scene.begin()

    async def check(answer: Reply, _: None) -> Result:
        shown = await scene.shown(job)
        scene.expect(answer.body["status"] == shown["status"], f"{answer}, then {shown}")
        check_end(scene, shown, "CANCELLED", "COMPLETED")
        winner = "cancel" if shown["status"] == "CANCELLED" else "complete"
        return Result(winner, [shown["status"]])

    return Race(await requesting(scene, "POST", f"cancel/{job}"), completing(worker, job), check)


async def done_and_timeout(scene: Scene) -> Race:
    job, worker = await scene.begin(executionTimeout=int(1000 * RUN_SECONDS))
    scene.world.loop.pass_time(RUN_SECONDS - EARLY_SECONDS)

    async def check(_: None, __: None) -> Result:
        shown = await scene.shown(job)
        check_end(scene, shown, "COMPLETED", "TIMED_OUT")
        winner = "done" if shown["status"] == "COMPLETED" else "timeout"
        return Result(winner, [shown["status"]])

    return Race(completing(worker, job), expiring(scene, job), check)


async def retry_and_expire(scene: Scene) -> Race:
    """The retention of a job ends while a client retries it."""
    job = await scene.run(ttl=int(1000 * LIFE_SECONDS))
    loop = scene.world.loop
    loop.pass_time(LIFE_SECONDS)
    await eventually(lambda: scene.status(job) == "TIMED_OUT")
    loop.pass_time(scene.kept_until(job) - loop.time() - EARLY_SECONDS)

    async def check(answer: Reply, _: None) -> Result:
        scene.expect(answer.status in (OK, NOT_FOUND), f"{answer}")
        shown = await scene.call("GET", f"status/{job}")
        scene.expect(shown.status == answer.status, f"{answer}, then {shown}")
        if answer.status == NOT_FOUND:
            return Result("expire", ["TIMED_OUT"])
        await scene.join(1, whole_run)
        check_end(scene, await scene.end(job), "COMPLETED")
        return Result("retry", ["TIMED_OUT", "COMPLETED"])

    expiry = Operation(
        lambda: loop.pass_time(PASSED_SECONDS), lambda: asyncio.sleep(PASSED_SECONDS)
    )
    return Race(await requesting(scene, "POST", f"retry/{job}"), expiry, check)


async def returning(scene: Scene, **policy: int) -> tuple[str, PuppetWorker]:
    """Return a job that ran when the proxy was started again, and a new connection of its worker,
    which has sent nothing yet.
    """
    job, before = await scene.begin(**policy)
    await scene.restart()
    worker = scene.enter(before.name)
    await worker.connect()
    return job, worker


def adopting(worker: PuppetWorker, job: str, *, is_done: bool = False) -> Operation:
    """Return the first message of a worker that comes back with a run.

    `is_done`: the run has ended, and the worker sends its frames as soon as it may.
    """

    async def outcome() -> bool:
        await eventually(lambda: bool(worker.found(Acknowledge, job) or worker.found(Stop, job)))
        is_adopted = bool(worker.found(Acknowledge, job))
        if is_adopted and is_done:
            worker.say(*frames_of(job, 1))
        return is_adopted

    first = worker.hello(Hold(job, 1, SENT_AGAIN)), Credit(1, 0)
    return Operation(lambda: worker.say(*first), outcome)


async def adopt_and_cancel(scene: Scene) -> Race:
    """A worker comes back after a restart of the proxy, with a run whose job is cancelled."""
    job, worker = await returning(scene)

    async def check(is_adopted: bool, answer: Reply) -> Result:
        shown = await scene.shown(job)
        scene.expect(answer.body["status"] == "CANCELLED", f"{answer}")
        check_end(scene, shown, "CANCELLED")
        await stopped(worker, job)
        return Result("adopt" if is_adopted else "cancel", [shown["status"]])

    cancelling = await requesting(scene, "POST", f"cancel/{job}")
    return Race(adopting(worker, job), cancelling, check)


async def adopt_and_complete_and_cancel(scene: Scene) -> Race:
    """A worker comes back with the result of a run whose job is cancelled."""
    job, worker = await returning(scene)

    async def check(_: bool, answer: Reply) -> Result:
        shown = await scene.end(job)
        scene.expect(answer.body["status"] == shown["status"], f"{answer}, then {shown}")
        check_end(scene, shown, "CANCELLED", "COMPLETED")
        if not worker.found(Acknowledge, job):
            await stopped(worker, job)
        winner = "cancel" if shown["status"] == "CANCELLED" else "adopt"
        return Result(winner, [shown["status"]])

    cancelling = await requesting(scene, "POST", f"cancel/{job}")
    return Race(adopting(worker, job, is_done=True), cancelling, check)


async def adopt_and_timeout(scene: Scene) -> Race:
    """A worker comes back with a run in the moment in which it has timed out."""
    job, worker = await returning(scene, executionTimeout=int(1000 * RUN_SECONDS))
    scene.world.loop.pass_time(RUN_SECONDS - EARLY_SECONDS)

    async def check(is_adopted: bool, _: None) -> Result:
        check_end(scene, await scene.shown(job), "TIMED_OUT")
        await stopped(worker, job)
        return Result("adopt" if is_adopted else "timeout", ["TIMED_OUT"])

    return Race(adopting(worker, job), expiring(scene, job), check)


async def adopt_and_retry(scene: Scene) -> Race:
    """A worker comes back with a run whose job has timed out and is retried."""
    job, worker = await returning(scene, executionTimeout=int(1000 * RUN_SECONDS))
    scene.world.loop.pass_time(RUN_SECONDS)
    await eventually(lambda: scene.status(job) == "TIMED_OUT")

    async def check(is_adopted: bool, answer: Reply) -> Result:
        scene.expect(answer.status == OK, f"{answer}")
        scene.expect(not is_adopted, "a run was adopted that has timed out")
        # The late end of the old run changes nothing.
        worker.say(Output(job, 1, b'"old"'), End(job, 1, "completed"))
        await worker.until(Job, job, 2)
        worker.say(*frames_of(job, 2))
        check_end(scene, await scene.end(job), "COMPLETED")
        return Result("retry", ["TIMED_OUT", "COMPLETED"])

    retrying = await requesting(scene, "POST", f"retry/{job}")
    return Race(adopting(worker, job), retrying, check)


async def stopped(worker: PuppetWorker, job: str) -> None:
    """Wait until a worker is asked to stop a run, and end it."""
    await eventually(lambda: bool(worker.found(Stop, job)))
    worker.say(End(job, worker.found(Stop, job)[0].attempt, "released", UNKNOWN_RUN))


RACES: dict[str, tuple[Prepare, set[str]]] = {
    "cancel-complete": (cancel_and_complete, {"cancel", "complete"}),
    "done-timeout": (done_and_timeout, {"done", "timeout"}),
    "retry-expire": (retry_and_expire, {"retry", "expire"}),
    "adopt-cancel": (adopt_and_cancel, {"adopt", "cancel"}),
    "adopt-complete-cancel": (adopt_and_complete_and_cancel, {"adopt", "cancel"}),
    "adopt-timeout": (adopt_and_timeout, {"adopt", "timeout"}),
    "adopt-retry": (adopt_and_retry, {"retry"}),
}
"""The races of this module, and the operations that can win."""
