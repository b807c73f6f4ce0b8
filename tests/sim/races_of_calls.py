"""Races about calls of the OpenAI API."""

import json
from functools import partial

from proxy.wire.frames import Chunk, End, Frame, Head, Job
from sim.clients import OK
from sim.http_client import Call, prepare
from sim.puppet import PuppetWorker, eventually
from sim.race import Operation, Prepare, Race, Result
from sim.races_of_runs import (
    EARLY_SECONDS,
    PASSED_SECONDS,
    check_end,
    nothing,
    requesting,
)
from sim.races_of_takes import taking, was_offered
from sim.scene import CALL_QUEUE_SECONDS, CALL_RUN_SECONDS, OWNER, Reply, Scene

ANSWER = {"object": "chat.completion"}


def answering(job: Job) -> list[Frame]:
    """Return the frames of a whole answer."""
    return [
        Head(job.job, job.attempt, OK, "application/json"),
        Chunk(job.job, job.attempt, json.dumps(ANSWER).encode()),
        End(job.job, job.attempt, "completed"),
    ]


def ending(worker: PuppetWorker, job: str) -> Operation:
    """Return the whole answer of a call that a worker has received."""
    [offered] = worker.found(Job, job)
    return Operation(lambda: worker.say(*answering(offered)), nothing)


async def calling(scene: Scene, *, streams: bool = False) -> tuple[Call, str]:
    """Send a call, and wait until it is in the proxy; return it and the id of its job."""
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "scripted", "stream": streams, "messages": messages}
    call = await prepare("POST", "/v1/chat/completions", OWNER, body)
    call.send()
    await eventually(lambda: len(scene.parts.interactive) == 1)
    return call, next(iter(scene.parts.interactive)).job.id


def passing(scene: Scene) -> Operation:
    """Return the moment in which the deadline of a call passes."""
    return Operation(
        lambda: scene.world.loop.pass_time(PASSED_SECONDS),
        lambda: eventually(lambda: not scene.parts.interactive),
    )


async def check_answer(scene: Scene, call: Call, job: str, *statuses: str) -> str:
    """Check that a client has received the outcome of its job; return the job's status."""
    answer = await scene.reply(call)
    shown = await scene.shown(job)
    status: str = shown["status"]
    scene.expect(status in statuses, f"{shown}")
    is_answered = (answer.status, answer.body) == (OK, ANSWER)
    scene.expect(is_answered == (status == "COMPLETED"), f"{answer}, but {shown}")
    return status


async def take_and_leave(scene: Scene, *, streams: bool) -> Race:
    """A call is taken while its client disconnects."""
    worker = await scene.join(0)
    call, job = await calling(scene, streams=streams)

    async def check(_: None, __: None) -> Result:
        is_offered = await was_offered(scene, worker, job)
        check_end(scene, await scene.shown(job), "CANCELLED")
        return Result("take" if is_offered else "leave", calls=["CANCELLED"])

    return Race(taking(worker), Operation(call.abort, nothing), check)


async def purge_and_take_call(scene: Scene) -> Race:
    """A purge ends a call that is queued, and not one that runs."""
    worker = await scene.join(0)
    call, job = await calling(scene)

    async def check(answer: Reply, _: None) -> Result:
        is_offered = bool(worker.found(Job, job))
        if is_offered:
            worker.say(*answering(worker.found(Job, job)[0]))
        status = await check_answer(scene, call, job, "COMPLETED" if is_offered else "CANCELLED")
        scene.expect(answer.body["removed"] == (not is_offered), f"{answer}, then {status}")
        return Result("take" if is_offered else "purge", calls=[status])

    return Race(await requesting(scene, "POST", "purge-queue"), taking(worker), check)


async def take_and_time_to_live_of_call(scene: Scene) -> Race:
    """A call is taken while its time in the queue ends."""
    worker = await scene.join(0, answering)
    call, job = await calling(scene)
    scene.world.loop.pass_time(CALL_QUEUE_SECONDS - EARLY_SECONDS)

    async def check(_: None, __: None) -> Result:
        status = await check_answer(scene, call, job, "COMPLETED", "TIMED_OUT")
        is_offered = bool(worker.found(Job, job))
        scene.expect(is_offered == (status == "COMPLETED"), f"{status}, offered: {is_offered}")
        return Result("take" if is_offered else "ttl", calls=[status])

    return Race(taking(worker), passing(scene), check)


async def cancel_and_complete_call(scene: Scene) -> Race:
    worker = await scene.join(1)
    call, job = await calling(scene)
    await worker.until(Job, job)

    async def check(answer: Reply, _: None) -> Result:
        status = await check_answer(scene, call, job, "COMPLETED", "CANCELLED")
        scene.expect(answer.body["status"] == status, f"{answer}, then {status}")
        return Result("complete" if status == "COMPLETED" else "cancel", calls=[status])

    return Race(await requesting(scene, "POST", f"cancel/{job}"), ending(worker, job), check)


async def done_and_timeout_of_call(scene: Scene) -> Race:
    worker = await scene.join(1)
    call, job = await calling(scene)
    await worker.until(Job, job)
    scene.world.loop.pass_time(CALL_RUN_SECONDS - EARLY_SECONDS)

    async def check(_: None, __: None) -> Result:
        status = await check_answer(scene, call, job, "COMPLETED", "TIMED_OUT")
        return Result("done" if status == "COMPLETED" else "timeout", calls=[status])

    return Race(ending(worker, job), passing(scene), check)


RACES: dict[str, tuple[Prepare, set[str]]] = {
    "take-leave": (partial(take_and_leave, streams=False), {"take", "leave"}),
    "take-leave-stream": (partial(take_and_leave, streams=True), {"take", "leave"}),
    "purge-take-call": (purge_and_take_call, {"purge", "take"}),
    "take-ttl-call": (take_and_time_to_live_of_call, {"take", "ttl"}),
    "cancel-complete-call": (cancel_and_complete_call, {"cancel", "complete"}),
    "done-timeout-call": (done_and_timeout_of_call, {"done", "timeout"}),
}
"""The races of this module, and the operations that can win."""
