"""A retry of an OpenAI call gets the answer of the run that the first attempt began."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from harness.network.cable import cable
from harness.network.raw_http import Answer, request, wire
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet
from pydantic import SecretStr

from proxy.api.openai.retries import (
    CALL_OVERHEAD_BYTES,
    FIRST_ATTEMPT_GRACE_SECONDS,
    KEPT_BUDGET_BYTES,
)
from proxy.service.kept import KEPT_MAX_BYTES
from proxy.serving import drain
from proxy.wire.frames import Chunk, End, Head, Job

EVENTS = "text/event-stream; charset=utf-8"
ONE, TWO, DONE = b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"
WHOLE = b'{"whole": true}'
COUNT = "X-Stainless-Retry-Count"
STREAM = {"model": "m", "stream": True}
JSON = {"model": "m"}


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[Proxy]:
    """A proxy without workers."""
    async with serving() as proxy:
        yield proxy


def call(body: Any, *fields: str, path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    return request(
        f"POST {path}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *fields,
        body=data,
    )


def named(name: str) -> str:
    return f"Idempotency-Key: {name}"


async def begin(worker: Puppet, *chunks: bytes, status: int = 200, kind: str = EVENTS) -> Job:
    """Take the next job as the worker, and send the head and these chunks."""
    job = await worker.job()
    await worker.say(Head(job.job, job.attempt, status, kind))
    for chunk in chunks:
        await worker.say(Chunk(job.job, job.attempt, chunk))
    return job


async def finish(worker: Puppet, job: Job, *chunks: bytes, ending: Any = "completed") -> None:
    for chunk in chunks:
        await worker.say(Chunk(job.job, job.attempt, chunk))
    await worker.say(End(job.job, job.attempt, ending))


async def answer_whole(worker: Puppet, body: bytes = WHOLE, status: int = 200) -> Job:
    job = await begin(worker, body, status=status, kind="application/json")
    await finish(worker, job, ending="completed" if status == 200 else "failed")
    return job


async def read(proxy: Proxy, data: bytes) -> Answer:
    """Send a request over a connection of its own; return the response."""
    async with wire(proxy) as client:
        await client.send(data)
        return await client.answer()


@asynccontextmanager
async def left(proxy: Proxy, data: bytes, worker: Puppet, *chunks: bytes) -> AsyncIterator[Job]:
    """Send a call whose client leaves after the worker has sent these chunks of a stream."""
    async with wire(proxy) as client:
        await client.send(data)
        job = await (begin(worker, *chunks) if chunks else worker.job())
        if chunks:
            await client.heard(chunks[-1])
        [mailbox] = [one for one in proxy.parts.interactive if one.job.id == job.job]
    await until(
        lambda: mailbox.on_change is not None or mailbox.outcome is not None,
        what="the call is detached",
    )
    yield job


async def assert_no_job(worker: Puppet, proxy: Proxy) -> None:
    """Check that the worker has received no other job, by the job of a further call."""
    marker = asyncio.create_task(read(proxy, call({"model": "m", "marker": 1})))
    job = await answer_whole(worker)
    assert (await marker).headers[b"x-job-id"].decode() == job.job


# Calls with an `Idempotency-Key`


async def test_a_retry_of_a_stream_gets_it_from_its_first_byte(shared: Proxy) -> None:
    data = call(STREAM, named("stream"))
    async with puppet(shared, slots=2) as worker, left(shared, data, worker, ONE) as job:
        async with wire(shared) as client:
            await client.send(data)
            await client.heard(ONE)
            await finish(worker, job, TWO, DONE)
        again = await read(shared, data)
        assert (again.status, again.body) == (200, ONE + TWO + DONE)
        assert again.headers[b"x-job-id"].decode() == job.job
        await assert_no_job(worker, shared)


async def test_a_retry_gets_what_was_sent_while_no_client_was_connected(shared: Proxy) -> None:
    data = call(STREAM, named("absent"))
    async with puppet(shared, slots=2) as worker, left(shared, data, worker, ONE) as job:
        await finish(worker, job, TWO, DONE)
        await until(lambda: not len(shared.parts.interactive), what="the run has ended")
        assert (await read(shared, data)).body == ONE + TWO + DONE
        await assert_no_job(worker, shared)


async def test_a_retry_of_a_whole_answer_gets_it(shared: Proxy) -> None:
    data = call(JSON, named("whole"))
    async with puppet(shared, slots=2) as worker, left(shared, data, worker) as job:
        retry = asyncio.create_task(read(shared, data))
        await worker.say(Head(job.job, job.attempt, 200, "application/json"))
        await finish(worker, job, WHOLE)
        assert (await retry).body == WHOLE
        await assert_no_job(worker, shared)


async def test_a_complete_answer_is_given_again(shared: Proxy) -> None:
    data = call(JSON, named("complete"))
    async with puppet(shared, slots=2) as worker:
        first = asyncio.create_task(read(shared, data))
        await answer_whole(worker)
        assert (await first).body == WHOLE
        again = await read(shared, data)
        assert (again.status, again.body) == (200, WHOLE)
        assert again.headers[b"x-job-id"] == (await first).headers[b"x-job-id"]
        await assert_no_job(worker, shared)


async def test_a_complete_answer_is_forgotten_after_its_time() -> None:
    async with serving(retry_grace=0.0) as proxy, puppet(proxy, slots=2) as worker:
        first = asyncio.create_task(read(proxy, call(JSON, named("old"))))
        await answer_whole(worker)
        await first
        assert len(proxy.parts.retries) == 1
        assert 0 < proxy.parts.retries.budget.used < 2 * CALL_OVERHEAD_BYTES
        proxy.parts.retries.close()
        assert (len(proxy.parts.retries), proxy.parts.retries.budget.used) == (0, 0)


@pytest.mark.parametrize(("status", "runs"), [(400, 1), (422, 1), (429, 2), (500, 2)])
async def test_only_errors_of_the_request_are_given_again(
    shared: Proxy, status: int, runs: int
) -> None:
    data = call(JSON, named(f"status {status}"))
    async with puppet(shared, slots=2) as worker:
        first = asyncio.create_task(read(shared, data))
        await answer_whole(worker, b'{"error": {}}', status)
        assert (await first).status == status
        again = asyncio.create_task(read(shared, data))
        if runs == 2:
            await answer_whole(worker)
        assert (await again).status == (200 if runs == 2 else status)
        await assert_no_job(worker, shared)


async def test_another_body_under_the_same_key_is_rejected(shared: Proxy) -> None:
    """While the first call runs, and when its answer is complete."""
    other = call({"model": "m", "n": 2}, named("other"))
    async with puppet(shared, slots=2) as worker:
        first = asyncio.create_task(read(shared, call(JSON, named("other"))))
        job = await worker.job()
        found = [await read(shared, other)]
        await worker.say(Head(job.job, job.attempt, 200, "application/json"))
        await finish(worker, job, WHOLE)
        assert (await first).body == WHOLE
        found.append(await read(shared, other))
        for one in found:
            assert (one.status, one.headers[b"x-should-retry"]) == (409, b"false")
            assert json.loads(one.body)["error"]["code"] == "idempotency_key_reused"


async def test_a_key_whose_client_is_connected_is_in_use(shared: Proxy) -> None:
    data = call(JSON, named("in use"))
    async with puppet(shared, slots=2) as worker:
        first = asyncio.create_task(read(shared, data))
        job = await worker.job()
        found = await read(shared, data)
        assert (found.status, found.headers[b"retry-after"]) == (409, b"1")
        assert json.loads(found.body)["error"]["code"] == "idempotency_key_in_use"
        await worker.say(Head(job.job, job.attempt, 200, "application/json"))
        await finish(worker, job, WHOLE)
        assert (await first).body == WHOLE


async def test_a_key_belongs_to_one_path(shared: Proxy) -> None:
    async with puppet(shared, slots=2) as worker:
        for path in (CHAT, "/v1/completions"):
            one = asyncio.create_task(read(shared, call(JSON, named("path"), path=path)))
            await answer_whole(worker)
            assert (await one).status == 200


async def test_a_key_belongs_to_one_owner() -> None:
    keys = [SecretStr(f"{owner}={owner * 20}") for owner in ("ann", "bob")]
    async with serving(api_key=keys) as proxy, puppet(proxy, slots=2) as worker:
        bodies = []
        for owner in ("ann", "bob"):
            data = call(JSON, named("same"), f"Authorization: Bearer {owner * 20}")
            one = asyncio.create_task(read(proxy, data))
            await answer_whole(worker, b'{"for": "%b"}' % owner.encode())
            bodies.append((await one).body)
        assert bodies == [b'{"for": "ann"}', b'{"for": "bob"}']


@pytest.mark.parametrize("key", ["x" * 256, "tab\there"])
async def test_an_invalid_key_is_rejected(shared: Proxy, key: str) -> None:
    found = await read(shared, call(JSON, named(key)))
    assert (found.status, json.loads(found.body)["error"]["param"]) == (400, "Idempotency-Key")


# Calls of SDKs that count their retries


@pytest.mark.parametrize("key", [None, "sdk"], ids=["without a key", "with a key"])
async def test_the_python_sdk_repeats_a_call_without_a_second_run(
    line: Line, key: str | None
) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    before = await _started(line)
    async with (
        cable(line.proxy.url) as cut,
        line.proxy.openai(base_url=f"{cut.url}/v1", max_retries=2) as client,
    ):
        making = asyncio.create_task(
            client.chat.completions.create(
                **chat("once", max_tokens=20, seed=40_000), extra_headers=headers
            )
        )
        await until(lambda: _is_running(line), what="the engine works")
        cut.cut()
        made = await making
    assert made.choices[0].message.content == "".join(f"once {n} " for n in range(20))
    assert cut.carried == 2
    assert await _started(line) == before + 20


async def test_the_python_sdk_repeats_a_stream_that_has_not_begun(shared: Proxy) -> None:
    async with (
        puppet(shared, slots=2) as worker,
        cable(shared.url) as cut,
        shared.openai(base_url=f"{cut.url}/v1", max_retries=2) as client,
    ):
        making = asyncio.create_task(client.chat.completions.create(**chat("begun", stream=True)))
        job = await worker.job()
        cut.cut()
        await until(lambda: cut.carried == 2, what="the SDK has connected again")
        await worker.say(Head(job.job, job.attempt, 200, EVENTS))
        await finish(worker, job, DONE)
        assert [part async for part in await making] == []
        await assert_no_job(worker, shared)


async def test_identical_calls_in_parallel_remain_separate(shared: Proxy) -> None:
    first, retry = (call({"model": "twin"}, f"{COUNT}: {number}") for number in (0, 1))
    async with puppet(shared, slots=9) as worker:
        staying = asyncio.create_task(read(shared, first))
        stays = await worker.job()
        lost = []
        async with wire(shared) as one, wire(shared) as two:
            for client in (one, two):
                await client.send(first)
                lost.append(await worker.job())
        detached = [
            each for each in shared.parts.interactive if each.job.id in {job.job for job in lost}
        ]
        await until(lambda: all(each.on_change for each in detached), what="both are detached")
        # Each of the first two claims a run; the third finds none.
        retries = [asyncio.create_task(read(shared, retry)) for _ in range(3)]
        new = await worker.job()
        for number, job in enumerate([*lost, stays, new]):
            await worker.say(Head(job.job, job.attempt, 200, "application/json"))
            await finish(worker, job, b'{"run": %d}' % number)
        assert (await staying).body == b'{"run": 2}'
        assert {(await one).body for one in retries} == {b'{"run": %d}' % n for n in (0, 1, 3)}


async def test_a_large_body_is_recognized(shared: Proxy) -> None:
    """Its digest is computed in a thread."""
    first, retry = (
        call({"model": "m", "text": "x" * 400_000}, f"{COUNT}: {number}") for number in (0, 1)
    )
    async with puppet(shared, slots=2) as worker, left(shared, first, worker) as job:
        await until(lambda: _has_digest(shared), what="the digest is known")
        again = asyncio.create_task(read(shared, retry))
        await worker.say(Head(job.job, job.attempt, 200, "application/json"))
        await finish(worker, job, WHOLE)
        assert (await again).headers[b"x-job-id"].decode() == job.job


@pytest.mark.parametrize("body", [STREAM, JSON], ids=["stream", "whole"])
async def test_a_first_attempt_of_an_sdk_ends_within_a_second(shared: Proxy, body: Any) -> None:
    async with puppet(shared, slots=2) as worker:
        async with wire(shared) as client:
            await client.send(call(body | {"first": 1}, f"{COUNT}: 0"))
            job = await worker.job()
        assert (await worker.stopped()).job == job.job
    await until(lambda: not len(shared.parts.interactive), what="the call is over")
    assert FIRST_ATTEMPT_GRACE_SECONDS < 1.0


async def test_a_stream_that_an_sdk_has_begun_to_read_ends_at_once(shared: Proxy) -> None:
    async with puppet(shared, slots=2) as worker:
        async with wire(shared) as client:
            await client.send(call(STREAM | {"begun": 1}, f"{COUNT}: 1"))
            job = await begin(worker, ONE)
            await client.heard(ONE)
            [mailbox] = list(shared.parts.interactive)
        assert (await worker.stopped()).job == job.job
        assert mailbox.on_change is None


async def test_a_call_of_another_client_has_no_key(shared: Proxy) -> None:
    async with puppet(shared, slots=2) as worker:
        async with wire(shared) as client:
            await client.send(call(JSON))
            job = await worker.job()
        assert (await worker.stopped()).job == job.job


# The grace


async def test_the_run_is_cancelled_when_no_retry_comes() -> None:
    async with serving(retry_grace=0.3) as proxy, puppet(proxy, slots=2) as worker:
        data = call(STREAM, named("late"))
        async with left(proxy, data, worker, ONE) as job:
            assert (await worker.stopped()).job == job.job
            await until(lambda: not len(proxy.parts.interactive))
            assert (len(proxy.parts.retries), proxy.parts.retries.budget.used) == (0, 0)
            await worker.say(End(job.job, job.attempt, "released"))
            again = asyncio.create_task(read(proxy, data))
            second = await begin(worker, TWO)
            await finish(worker, second, DONE)
            assert (await again).body == TWO + DONE


async def test_the_run_is_cancelled_at_once_without_a_grace() -> None:
    async with serving(retry_grace=0.0) as proxy, puppet(proxy, slots=2) as worker:
        async with wire(proxy) as client:
            await client.send(call(JSON, named("none")))
            job = await worker.job()
        assert (await worker.stopped()).job == job.job


async def test_detached_calls_end_with_the_proxy() -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving(drain=30.0))
        worker = await stack.enter_async_context(puppet(proxy, slots=2))
        job = await stack.enter_async_context(left(proxy, call(JSON, named("drain")), worker))
        # The drain waits for calls with a client only.
        draining = asyncio.create_task(drain(proxy.parts))
        assert (await worker.stopped()).job == job.job
        await draining


# Loss and memory


async def test_a_retry_gets_one_run_only_after_a_worker_is_lost(shared: Proxy) -> None:
    data = call(JSON, named("lost"))
    async with puppet(shared, slots=2) as worker, left(shared, data, worker) as job:
        await worker.say(Head(job.job, job.attempt, 200, EVENTS))
        before = shared.parts.retries.budget.used
        await worker.say(Chunk(job.job, job.attempt, ONE))
        await until(lambda: shared.parts.retries.budget.used > before, what="the chunk is kept")
        await worker.socket.close()
        async with puppet(shared, slots=2) as other:
            second = await begin(other, TWO)
            assert (second.job, second.attempt) == (job.job, job.attempt + 1)
            retry = asyncio.create_task(read(shared, data))
            await finish(other, second, DONE)
            assert (await retry).body == TWO + DONE


@pytest.mark.parametrize("body", [STREAM, JSON], ids=["stream", "whole"])
async def test_an_answer_that_is_too_large_is_not_kept(shared: Proxy, body: Any) -> None:
    is_stream = body is STREAM
    data = call(body, named(f"large {is_stream}"))
    async with puppet(shared, slots=2) as worker, left(shared, data, worker) as job:
        kind = EVENTS if is_stream else "application/json"
        await worker.say(Head(job.job, job.attempt, 200, kind))
        part = b"data: " + b"x" * 65_536 + b"\n\n"
        for _ in range(KEPT_MAX_BYTES // len(part) + 1):
            await worker.say(Chunk(job.job, job.attempt, part, more=not is_stream))
        assert (await worker.stopped()).job == job.job
        assert shared.parts.retries.budget.used < KEPT_MAX_BYTES
        retry = asyncio.create_task(read(shared, data))
        await answer_whole(worker)
        assert (await retry).body == WHOLE


async def test_a_call_without_memory_to_keep_it_is_cancelled() -> None:
    async with serving() as proxy, puppet(proxy, slots=2) as worker:
        assert proxy.parts.retries.budget.acquire(KEPT_BUDGET_BYTES, "other")
        async with wire(proxy) as client:
            await client.send(call(JSON, named("no memory")))
            job = await worker.job()
        assert (await worker.stopped()).job == job.job
        assert proxy.parts.retries.budget.used == KEPT_BUDGET_BYTES


async def test_one_owner_may_hold_half_of_the_memory() -> None:
    keys = [SecretStr(f"{owner}={owner * 20}") for owner in ("ann", "bob")]
    async with serving(api_key=keys) as proxy:
        assert proxy.parts.retries.budget.acquire(KEPT_BUDGET_BYTES // 2, "ann")
        assert not proxy.parts.retries.budget.acquire(1, "ann")
        assert proxy.parts.retries.budget.acquire(KEPT_BUDGET_BYTES // 2, "bob")


async def _started(line: Line) -> float:
    """Return the number of tokens that the engines have generated."""
    made = [await one.metric(line.proxy.http, "generation_tokens_total") for one in line.workers]
    return sum(made)


async def _is_running(line: Line) -> bool:
    running = [await one.metric(line.proxy.http, "num_requests_running") for one in line.workers]
    return sum(running) == 1


async def _has_digest(proxy: Proxy) -> bool:
    return bool(len(proxy.parts.retries))
