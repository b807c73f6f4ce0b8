"""Stock workers: the elements that arrived are compared with the list that the worker posts."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from harness.data.store_steps import RUN
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy
from harness.runpod.raw_worker import Raw
from harness.runpod.sdk_worker import stock_proxy
from harness.tools.waiting import until

from proxy.channel.runpod.comparison import REPETITION_SECONDS
from proxy.channel.runpod.results import HOLES
from proxy.jobs.model import EndpointId, JobId, Millis, WorkerId


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with stock_proxy(poll_hold=1.0) as running:
        yield running


@pytest.fixture
def queue(proxy: Proxy) -> QueueClient:
    return QueueClient(proxy)


@pytest_asyncio.fixture
async def raw(proxy: Proxy) -> AsyncIterator[Raw]:
    async with Raw(proxy) as worker:
        yield worker


async def begin(queue: QueueClient, raw: Raw, *elements: Any) -> str:
    """Let the worker take a job and post some elements; return the job's id."""
    job = await queue.run(1)
    assert (await raw.next_job())["id"] == job
    for element in elements:
        assert await raw.chunk(job, element) == 200
    return job


async def streamed(queue: QueueClient, job: str) -> list[Any]:
    """Return the elements that a client has not read yet."""
    return [element["output"] for element in (await queue.stream(job))["stream"]]


async def ended(queue: QueueClient, job: str) -> tuple[str, Any]:
    answer = await queue.end(job)
    return answer["status"], answer["output"]


# The last posts were lost


@pytest.mark.parametrize("arrived", [0, 1, 2])
async def test_a_reader_receives_the_elements_whose_posts_were_lost_at_the_end(
    queue: QueueClient, raw: Raw, arrived: int
) -> None:
    values = ["a", {"b": [1, 2.50]}, None, "é"]
    job = await begin(queue, raw, *values[:arrived])
    early = await streamed(queue, job) if arrived else []
    assert await raw.done(job, {"output": values}, stream=True) == 200
    assert await ended(queue, job) == ("COMPLETED", values)
    assert early + await streamed(queue, job) == values


async def test_the_list_of_a_plain_handler_is_not_streamed(queue: QueueClient, raw: Raw) -> None:
    job = await begin(queue, raw)
    await raw.done(job, {"output": [1, 2]})
    assert await ended(queue, job) == ("COMPLETED", [1, 2])
    assert await streamed(queue, job) == []


async def test_elements_with_other_blanks_are_equal(queue: QueueClient, raw: Raw) -> None:
    job = await begin(queue, raw)
    await raw.chunk_bytes(job, b'{"output":{"a":1}}')
    assert await streamed(queue, job) == [{"a": 1}]
    await raw.done(job, b'{"output": [ { "a" : 1 } , 2 ]}', stream=True)
    assert await ended(queue, job) == ("COMPLETED", [{"a": 1}, 2])
    assert await streamed(queue, job) == [2]


# Holes and repetitions

DIFFERENT = {
    "a hole": (["a", "c"], ["a", "b", "c"]),
    "a hole at the start": (["b", "c"], ["a", "b", "c"]),
    "a repetition": (["a", "a", "b"], ["a", "b"]),
    "a repetition at the end": (["a", "b", "b"], ["a", "b"]),
    "both": (["a", "a", "c"], ["a", "b", "c"]),
}


@pytest.mark.parametrize("name", DIFFERENT)
async def test_no_reader_sees_a_log_that_differs_from_the_list(
    queue: QueueClient, raw: Raw, name: str
) -> None:
    arrived, values = DIFFERENT[name]
    job = await begin(queue, raw, *arrived)
    await raw.done(job, {"output": values}, stream=True)
    assert await ended(queue, job) == ("COMPLETED", values)
    assert await streamed(queue, job) == values


@pytest.mark.parametrize("name", DIFFERENT)
async def test_a_reader_that_has_received_output_learns_of_a_difference(
    queue: QueueClient, raw: Raw, name: str
) -> None:
    arrived, values = DIFFERENT[name]
    job = await begin(queue, raw, arrived[0])
    assert await streamed(queue, job) == arrived[:1]
    for value in arrived[1:]:
        await raw.chunk(job, value)
    await raw.done(job, {"output": values}, stream=True)
    assert await ended(queue, job) == ("FAILED", values)
    assert (await queue.status(job))["error"] == HOLES.message


async def test_a_list_that_is_not_the_list_of_the_elements_is_not_compared(
    queue: QueueClient, raw: Raw
) -> None:
    """A handler that changes a value after it yielded it posts a list of equal values."""
    arrived = [{"n": 1}, {"n": 2}, {"n": 3}]
    job = await begin(queue, raw, *arrived)
    assert await streamed(queue, job) == arrived
    await raw.done(job, {"output": [{"n": 3}] * 3}, stream=True)
    assert await ended(queue, job) == ("COMPLETED", [{"n": 3}] * 3)


@pytest.mark.parametrize("output", [[], None, "ab", {"text": "ab"}])
async def test_without_a_list_nothing_is_compared(
    queue: QueueClient, raw: Raw, output: Any
) -> None:
    job = await begin(queue, raw, "a", "b")
    await raw.done(job, {"output": output}, stream=True)
    assert await ended(queue, job) == ("COMPLETED", output)
    assert await streamed(queue, job) == ["a", "b"]


# Repeated posts


async def cut(proxy: Proxy, raw: Raw, job: str, value: Any) -> None:
    """Post an element, and close the connection before the response."""
    worker = proxy.parts.registry.find(EndpointId("default"), raw.name)
    assert worker is not None
    run = worker.tracked.runs[JobId(job)]
    before = len(run.posted)
    worker.pause(JobId(job), run.attempt)
    posting = asyncio.create_task(raw.chunk(job, value))
    await until(lambda: run.posted.connection is not None, what="the post waits for its response")
    assert len(run.posted) in {before, before + 1}
    posting.cancel()
    await until(lambda: run.posted.connection is None, what="its connection is closed")
    worker.resume(JobId(job), run.attempt, 0, 0)


async def test_a_post_whose_response_was_lost_is_not_stored_twice(
    proxy: Proxy, queue: QueueClient, raw: Raw
) -> None:
    job = await begin(queue, raw, "a")
    await cut(proxy, raw, job, "b")
    await asyncio.sleep(REPETITION_SECONDS)
    # The response to the repetition is lost too.
    await cut(proxy, raw, job, "b")
    await asyncio.sleep(REPETITION_SECONDS)
    for value in ("b", "b", "c"):
        await raw.chunk(job, value)
    await raw.done(job, {"output": []}, stream=True)
    assert (await queue.end(job))["status"] == "COMPLETED"
    assert await streamed(queue, job) == ["a", "b", "b", "c"]


@pytest.mark.parametrize("seconds", [0, REPETITION_SECONDS])
async def test_the_next_element_after_a_lost_response_is_stored(
    proxy: Proxy, queue: QueueClient, raw: Raw, seconds: float
) -> None:
    """Without a pause it is an element with the same value: the SDK waits before it repeats."""
    job = await begin(queue, raw)
    await cut(proxy, raw, job, "a")
    await asyncio.sleep(seconds)
    following = "b" if seconds else "a"
    await raw.chunk(job, following)
    await raw.done(job, {"output": []}, stream=True)
    assert await streamed(queue, job) == ["a", following]


# After a restart of the proxy


@pytest.mark.parametrize(
    ("stored", "posted"), [(["a"], ["c"]), (["a"], []), (["a", "a"], ["b", "c"])]
)
async def test_elements_from_before_a_restart_are_compared(
    proxy: Proxy, queue: QueueClient, raw: Raw, stored: list[str], posted: list[str]
) -> None:
    store = proxy.parts.store
    job = JobId(await queue.run(1))
    [taken] = await store.take(
        EndpointId("default"), WorkerId(raw.name), limit=1, light_limit=0, now=Millis(0), run=RUN
    )
    await store.append(job, RUN, [b'{"output":"%b"}' % value.encode() for value in stored])
    proxy.parts.orphans.find([taken])
    for value in posted:
        assert await raw.chunk(job, value) == 200
    await raw.done(job, {"output": ["a", "b", "c"]}, stream=True)
    assert await ended(queue, job) == ("COMPLETED", ["a", "b", "c"])
    assert await streamed(queue, job) == ["a", "b", "c"]
