"""Races about jobs that a worker takes, and about the output of a run that is lost."""

import asyncio
from functools import partial

from proxy.wire.frames import UNKNOWN_RUN, Credit, End, Job, Output, Stop
from sim.puppet import PuppetWorker, eventually
from sim.race import AFTERMATH_SECONDS, Operation, Prepare, Race, Result
from sim.races_of_runs import (
    EARLY_SECONDS,
    LIFE_SECONDS,
    TEXTS,
    check_end,
    expiring,
    nothing,
    requesting,
    whole_run,
)
from sim.scene import Reply, Scene


def taking(worker: PuppetWorker) -> Operation:
    """Return the credit of a worker, for which it gets a job if one is queued."""
    return Operation(lambda: worker.say(Credit(1, 0)), nothing)


async def was_offered(scene: Scene, worker: PuppetWorker, job: str) -> bool:
    """Return True if a worker has received a job that has ended; check that it must stop the run,
    and end the run.
    """
    await asyncio.sleep(AFTERMATH_SECONDS)
    offers = len(worker.found(Job, job))
    stops = len(worker.found(Stop, job))
    scene.expect(offers <= 1, f"{offers} offers of a job")
    scene.expect(offers <= stops, f"{offers} offers of a job that has ended, {stops} stops")
    if stops:
        worker.say(End(job, 1, "released", UNKNOWN_RUN))
    return bool(offers)


async def purge_and_take(scene: Scene) -> Race:
    worker = await scene.join(0, whole_run)
    jobs = [await scene.run() for _ in range(2)]

    async def check(answer: Reply, _: None) -> Result:
        ends = []
        for job in jobs:
            shown = await scene.end(job)
            is_offered = bool(worker.found(Job, job))
            check_end(scene, shown, "COMPLETED" if is_offered else "CANCELLED")
            ends.append(shown["status"])
        removed = answer.body["removed"]
        scene.expect(ends.count("CANCELLED") == removed, f"{removed} removed, {ends}")
        return Result(("take", "both", "purge")[ends.count("CANCELLED")], ends)

    return Race(await requesting(scene, "POST", "purge-queue"), taking(worker), check)


async def take_and_time_to_live(scene: Scene) -> Race:
    worker = await scene.join(0)
    job = await scene.run(ttl=int(1000 * LIFE_SECONDS))
    scene.world.loop.pass_time(LIFE_SECONDS - EARLY_SECONDS)

    async def check(_: None, __: None) -> Result:
        check_end(scene, await scene.shown(job), "TIMED_OUT")
        is_offered = await was_offered(scene, worker, job)
        return Result("take" if is_offered else "ttl", ["TIMED_OUT"])

    return Race(taking(worker), expiring(scene, job), check)


async def take_and_cancel(scene: Scene) -> Race:
    worker = await scene.join(0)
    job = await scene.run()

    async def check(_: None, answer: Reply) -> Result:
        scene.expect(answer.body["status"] == "CANCELLED", f"{answer}")
        check_end(scene, await scene.shown(job), "CANCELLED")
        is_offered = await was_offered(scene, worker, job)
        return Result("take" if is_offered else "cancel", ["CANCELLED"])

    return Race(taking(worker), await requesting(scene, "POST", f"cancel/{job}"), check)


async def take_and_part(scene: Scene) -> Race:
    """A worker leaves while a job is taken for it; the job runs on the next worker."""
    worker = await scene.join(0)
    job = await scene.run()

    def take() -> None:
        if worker in scene.workers:
            worker.say(Credit(1, 0))

    async def check(_: None, __: None) -> Result:
        other = await scene.join(1, whole_run)
        shown = await scene.end(job)
        check_end(scene, shown, "COMPLETED")
        is_offered = bool(worker.found(Job, job))
        scene.expect(is_offered or not shown["retries"], f"a run was lost of {shown}")
        scene.expect(len(other.found(Job, job)) == 1, f"{other.received}")
        return Result("take" if is_offered else "part", ["COMPLETED"])

    parting = Operation(lambda: scene.dismiss(worker), nothing)
    return Race(Operation(take, nothing), parting, check)


async def consume_and_lose(scene: Scene, *, query: str, waits: bool) -> Race:
    """Output of a lost run is delivered and the job fails, or it is not and the job runs again.

    `query`: without a cursor, the reader consumes the output. `waits`: the reader waits already
    when the output arrives, and the output is the first operation.
    """
    job, worker = await scene.begin()
    other = await scene.join(0, whole_run)
    output = Output(job, 1, b'"lost"')
    reading = await requesting(scene, "GET", f"stream/{job}{query}")
    if waits:
        reading.begin()
        await asyncio.sleep(AFTERMATH_SECONDS)

        def write() -> None:
            if worker in scene.workers:
                worker.say(output)

        def is_written_or_lost() -> bool:
            return scene.outputs(job) > 0 or worker not in scene.workers

        first = Operation(write, lambda: eventually(is_written_or_lost))
    else:
        worker.say(output)
        await eventually(lambda: scene.outputs(job) == 1)
        first = reading

    async def check(reply: Reply | None, _: None) -> Result:
        other.say(Credit(1, 0))
        if reply is None:
            reply = await reading.outcome()
        seen = texts(reply)
        shown = await scene.end(job)
        check_end(scene, shown, "COMPLETED", "FAILED")
        rest = f"?after={reply.body['next']}" if query else ""
        seen += texts(await scene.call("GET", f"stream/{job}{rest}"))
        is_lost = shown["status"] == "FAILED"
        scene.expect(seen == (["lost"] if is_lost else TEXTS), f"{seen} of {shown}")
        scene.expect(is_lost != bool(other.found(Job, job)), f"{shown} {other.received}")
        return Result("consume" if is_lost else "lose", [shown["status"]])

    return Race(first, Operation(lambda: scene.dismiss(worker), nothing), check)


def texts(reply: Reply) -> list[str]:
    """Return the output in a reply of `stream`."""
    return [element["output"] for element in reply.body["stream"]]


RACES: dict[str, tuple[Prepare, set[str]]] = {
    "purge-take": (purge_and_take, {"purge", "both", "take"}),
    "take-ttl": (take_and_time_to_live, {"take", "ttl"}),
    "take-cancel": (take_and_cancel, {"take", "cancel"}),
    "take-part": (take_and_part, {"take", "part"}),
    "consume-lose": (partial(consume_and_lose, query="", waits=False), {"consume", "lose"}),
    "read-lose": (partial(consume_and_lose, query="?after=0", waits=False), {"consume", "lose"}),
    "wait-lose": (partial(consume_and_lose, query="", waits=True), {"consume", "lose"}),
}
"""The races of this module, and the operations that can win."""
