"""The id of a worker belongs to one process: copies of a machine do not disturb each other."""

import asyncio

import pytest
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import Proxy, serving
from harness.tools.waiting import until
from harness.worker.process import worker
from harness.worker.puppet import Puppet, hello, puppet
from structlog.testing import capture_logs

from proxy.wire import frames

pytestmark = pytest.mark.slow

REMEDY = "every worker needs its own WORKER_ID"


async def test_a_copy_of_a_worker_is_refused_and_disturbs_no_job() -> None:
    async with (
        serving() as proxy,
        worker(proxy, id="w-copied", max_concurrency=2) as first,
        worker(proxy, id="w-copied", wait=False) as second,
    ):
        queue = QueueClient(proxy)
        value = prompt("kept", max_tokens=20, seed=50_000)
        jobs = await asyncio.gather(*(queue.run(value) for _ in range(8)))
        assert await asyncio.wait_for(second.process.wait(), 20) == 78
        await until(lambda: any("worker.ended" in line for line in second.lines))
        assert any(REMEDY in line for line in second.lines if "event=" not in line)
        ended = await asyncio.gather(*(queue.end(job) for job in jobs))
        assert {(each["status"], each["retries"]) for each in ended} == {("COMPLETED", 0)}
        assert first.process.returncode is None


async def test_a_worker_that_was_killed_and_restarted_is_admitted_at_once() -> None:
    async with serving(lease=60.0) as proxy:
        queue = QueueClient(proxy)
        async with worker(proxy, id="w-again") as first:
            job = await queue.run(prompt("again", max_tokens=30, seed=50_000))
            await until(lambda: any(one.holds for one in proxy.parts.fleet), what="it runs")
            first.kill()
            await first.process.wait()
            async with worker(proxy, id="w-again"):
                ended = await asyncio.wait_for(queue.end(job), 20)
        assert ended["status"] == "COMPLETED"


async def test_another_process_is_refused_while_the_first_is_heard_of() -> None:
    async with (
        serving(lease=60.0) as proxy,
        puppet(proxy, hello(instance="a"), frames.Credit(1, 0)),
        puppet(proxy, hello(instance="b")) as second,
    ):
        code, reason = await second.closed()
        assert code == 4409
        assert reason.endswith(REMEDY)
        assert len(reason) < 120
        assert [one.instance for one in proxy.parts.fleet] == ["a"]


async def test_another_process_takes_over_after_a_lease_without_a_message(proxy: Proxy) -> None:
    """A worker without slots is not removed, as if it loaded; its connection may be half open."""
    async with puppet(proxy, hello(instance="a")):
        await until(lambda: _instances(proxy) == ["a"])
        [first] = proxy.parts.fleet
        first.seen -= 60
        async with puppet(proxy, hello(instance="b"), frames.Credit(1, 0)):
            await until(lambda: _instances(proxy) == ["b"])


async def test_the_runs_of_a_process_whose_id_was_taken_over_are_lost() -> None:
    async with serving(lease=60.0) as proxy:
        queue = QueueClient(proxy)
        async with puppet(proxy, hello(instance="a"), frames.Credit(1, 0)) as first:
            job = await queue.run(prompt())
            assert (await first.job()).attempt == 1
            await first.socket.close(code=1011)
        async with puppet(proxy, hello(instance="b"), frames.Credit(1, 0)) as second:
            assert (await asyncio.wait_for(second.job(), 5)).attempt == 2
            assert (await queue.status(job))["retries"] == 1


async def test_the_same_process_replaces_its_connection(proxy: Proxy) -> None:
    async with puppet(proxy, hello(instance="a"), frames.Credit(1, 0)) as first:
        await until(lambda: proxy.ready == 1)
        async with puppet(proxy, hello(instance="a"), frames.Credit(1, 0)):
            assert (await first.closed())[0] == 1012
            await until(lambda: proxy.ready == 1)


@pytest.mark.parametrize(("first", "second"), [("", ""), ("a", ""), ("", "b")])
async def test_a_worker_without_an_instance_replaces_a_connection(
    proxy: Proxy, first: str, second: str
) -> None:
    with capture_logs() as lines:
        async with puppet(proxy, hello(instance=first), frames.Credit(1, 0)) as one:
            await until(lambda: proxy.ready == 1)
            async with puppet(proxy, hello(instance=second), frames.Credit(1, 0)):
                assert (await one.closed())[0] == 1012
    [warning] = [line for line in lines if line["event"] == "worker.replaced"]
    assert REMEDY in warning["hint"]


# Jobs that did not reach a worker


async def _breaks(proxy: Proxy, instance: str, holds: list[frames.Hold] | None = None) -> None:
    """Connect, receive the beginning of a job, and break the connection."""
    first = (hello(instance=instance, holds=holds or []), frames.Credit(1, 0))
    async with puppet(proxy, *first) as one:
        await one.job()
        await _cut(one)


async def _cut(one: Puppet) -> None:
    transport = one.socket._response.connection.transport  # type: ignore[union-attr]
    transport.abort()


@pytest.mark.parametrize("size", [1, 9_000_000], ids=["small", "large"])
async def test_a_job_that_never_reached_its_worker_counts_no_failure(
    proxy: Proxy, size: int
) -> None:
    queue = QueueClient(proxy)
    job = await queue.run(prompt("x" * size))
    for _ in range(4):
        await _breaks(proxy, "a")
    async with puppet(proxy, hello(instance="a"), frames.Credit(1, 0)) as one:
        await _complete(one)
        ended = await queue.end(job)
    assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)


async def test_a_large_job_that_never_reached_a_worker_of_an_older_version_counts_no_failure(
    proxy: Proxy,
) -> None:
    queue = QueueClient(proxy)
    job = await queue.run(prompt("x" * 9_000_000))
    for _ in range(4):
        await _breaks(proxy, "")
    async with puppet(proxy, hello(), frames.Credit(1, 0)) as one:
        await _complete(one)
        ended = await queue.end(job)
    assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)


async def test_a_run_that_ended_and_whose_frames_were_lost_counts_as_lost() -> None:
    """The worker still lists it, with the number of its frames."""
    async with serving(lease=60.0) as proxy:
        queue = QueueClient(proxy)
        job = await queue.run(prompt())
        holds: list[frames.Hold] = []
        for attempt in (1, 2, 3):
            first = (hello(instance="a", holds=holds), frames.Credit(1, 0))
            async with puppet(proxy, *first) as one:
                while holds and (await one.stopped()).attempt != attempt - 1:
                    pass
                for hold in holds:
                    end = frames.End(hold.job, hold.attempt, "released", frames.UNKNOWN_RUN)
                    await one.say(end)
                assert (await one.job()).attempt == attempt
                await _cut(one)
            holds = [frames.Hold(job, attempt, 2)]
        async with puppet(proxy, hello(instance="a", holds=holds), frames.Credit(1, 0)):
            ended = await queue.end(job)
        assert ended["status"] == "FAILED"
        assert "Given up after 3 runs were lost" in ended["error"]


async def test_a_job_whose_connections_always_break_ends(proxy: Proxy) -> None:
    queue = QueueClient(proxy)
    job = await queue.run(prompt())
    times = 0
    while (await queue.status(job))["status"] != "FAILED":
        times += 1
        first = (hello(instance="a"), frames.Credit(1, 0))
        async with puppet(proxy, *first) as one:
            taking = asyncio.create_task(one.job())
            ending = asyncio.create_task(queue.end(job))
            await asyncio.wait({taking, ending}, return_when=asyncio.FIRST_COMPLETED)
            for task in (taking, ending):
                task.cancel()
            await _cut(one)
    assert times == 13


async def _complete(one: Puppet) -> None:
    job = await one.job()
    received = 0
    while received < job.size:
        frame = await one.hear()
        if isinstance(frame, frames.Body):
            received += len(frame.data)
    await one.say(
        frames.Output(job.job, job.attempt, b"{}"),
        frames.End(job.job, job.attempt, "completed"),
    )


def _instances(proxy: Proxy) -> list[str]:
    return [one.instance for one in proxy.parts.fleet]
