"""Edge cases of the stock SDK's protocol, tested with a worker that sends it over plain HTTP."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from harness.proxy.server import CHAT, Proxy, serving
from harness.runpod.raw_worker import Raw
from harness.runpod.sdk_worker import stock_proxy
from harness.tools.waiting import until

from proxy.jobs.model import EndpointId, Millis, WorkerId

HOLD = 1.0


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with stock_proxy(poll_hold=HOLD) as running:
        yield running


async def run(proxy: Proxy, value: Any = 1, **more: Any) -> str:
    async with proxy.http.post("/v2/default/run", json={"input": value} | more) as response:
        return str((await response.json())["id"])


async def status(proxy: Proxy, job: str) -> dict[str, Any]:
    async with proxy.http.get(f"/v2/default/status/{job}") as response:
        found: dict[str, Any] = await response.json()
        return found


async def test_a_long_poll_is_held_and_then_answered_empty(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    async with Raw(proxy) as raw:
        began = loop.time()
        assert await asyncio.gather(raw.take(), raw.stops()) == [None, []]
        assert loop.time() - began >= HOLD


async def test_a_batch_poll_receives_the_available_jobs(proxy: Proxy) -> None:
    jobs = {await run(proxy, number) for number in range(3)}
    async with Raw(proxy) as raw:
        taken = await raw.take(batch=2)
        assert [one["input"] for one in taken] == [0, 1]
        more = await raw.take(batch=8, busy=True)
        assert {one["id"] for one in taken + more} == jobs


async def test_a_call_with_a_wrong_token_or_endpoint_is_refused_slowly(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()

    async def refused(path: str, token: str) -> int:
        async with proxy.http.get(path, headers={"Authorization": token}) as response:
            return response.status

    began = loop.time()
    token = proxy.parts.token
    asked = [
        refused("/v2/default/job-take/w?gpu=x", "wrong"),
        refused("/v2/other/job-take/w?gpu=x", token),
        refused("/v2/default/job-take/w&job_in_progress=0", token),
        refused("/v2/default/job-done/w/j", token),
    ]
    assert await asyncio.gather(*asked) == [401, 404, 404, 405]
    assert loop.time() - began >= 2.0
    many = await asyncio.gather(*(refused("/v2/default/ping/w", "wrong") for _ in range(100)))
    assert set(many) == {401, 429}


async def test_a_job_that_its_worker_never_received_is_reassigned_and_not_counted(
    proxy: Proxy,
) -> None:
    async with Raw(proxy) as first, Raw(proxy, "pod-2") as second:
        job = await run(proxy)
        assert (await first.take())["id"] == job
        waiting = asyncio.create_task(second.next_job())
        await first.ping()
        await first.stops()
        await first.stops()
        await first.ping()
        await first.ping()
        assert (await asyncio.wait_for(waiting, 5))["id"] == job
        assert (await status(proxy, job))["retries"] == 0


async def test_a_job_whose_poll_breaks_is_not_lost(proxy: Proxy) -> None:
    async with Raw(proxy) as first:
        polling = asyncio.create_task(first.take())
        await until(lambda: any(one.credit for one in proxy.parts.fleet), what="it polls")
        polling.cancel()
        await until(
            lambda: not any(one.credit for one in proxy.parts.fleet), what="the poll is gone"
        )
    async with Raw(proxy, "pod-2") as second:
        job = await run(proxy)
        assert (await second.next_job())["id"] == job


async def test_a_job_given_to_a_poll_that_breaks_is_done_by_another_worker() -> None:
    async with stock_proxy(line_gap=0.3, poll_hold=HOLD) as proxy, Raw(proxy, "pod-2") as good:
        for number in range(16):
            async with Raw(proxy, f"bad-{number}") as bad:
                polling = asyncio.create_task(bad.take())
                await until(lambda: any(one.credit for one in proxy.parts.fleet), what="it polls")
                submitting = asyncio.create_task(run(proxy, number))
                # A different moment each time, between the job's submission and the poll's answer.
                for _ in range(number):
                    await asyncio.sleep(0)
                polling.cancel()
                job = await submitting
            taken = await asyncio.wait_for(good.next_job(), 10)
            await good.done(taken["id"], {"output": number})
            shown = await status(proxy, job)
            assert (shown["status"], shown["output"]) == ("COMPLETED", number)
            assert shown["retries"] <= 1


async def test_a_worker_is_not_given_a_job_that_it_may_still_have(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        job = await run(proxy)
        await raw.take()
        await raw.ping(job)
        await raw.done(job, {"error": "no"})
        async with proxy.http.post(f"/v2/default/retry/{job}") as response:
            assert response.status == 200
        assert await raw.take(busy=True) is None
        await raw.ping()
        assert (await raw.next_job())["id"] == job


async def test_a_result_that_is_posted_again_does_not_end_another_attempt(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        job = await run(proxy)
        await raw.take()
        await raw.done(job, {"error": "no"})
        async with proxy.http.post(f"/v2/default/retry/{job}") as response:
            assert response.status == 200
        # It has not received the response.
        assert await raw.take(busy=True) is None
        await raw.done(job, {"error": "no"})
        assert (await status(proxy, job))["status"] == "IN_QUEUE"
        assert (await raw.next_job())["id"] == job


async def test_the_first_result_counts_and_a_late_one_is_acknowledged(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        job = await run(proxy)
        await raw.take()
        assert await raw.done(job, {"output": 1}) == 200
        assert await raw.done(job, {"output": 2}) == 200
        assert (await status(proxy, job))["output"] == 1
        late = await run(proxy)
        await raw.take()
        async with proxy.http.post(f"/v2/default/cancel/{late}"):
            pass
        assert await raw.stops() == [late]
        assert await raw.done(late, {"output": 3}) == 200
        assert (await status(proxy, late))["status"] == "CANCELLED"
        assert await raw.done("never-was", {"output": 3}) == 200


async def test_a_malformed_result_fails_its_job(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        job = await run(proxy)
        await raw.take()
        assert await raw.done(job, b"<html>") == 200
        assert (await status(proxy, job))["status"] == "FAILED"


async def test_a_result_keeps_its_bytes(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        job = await run(proxy, {"a": 1.50, "b": 1})
        await raw.take()
        await raw.done(
            job, b'{"output": {"big": 123456789012345678901234567890, "one": 1.0,  "e": 1E2}}'
        )
        async with proxy.http.get(f"/v2/default/status/{job}") as response:
            assert (
                b'{"big": 123456789012345678901234567890, "one": 1.0,  "e": 1E2}'
                in await response.read()
            )


async def test_a_stopped_job_is_stopped_again_while_the_worker_lists_it(proxy: Proxy) -> None:
    async with Raw(proxy) as raw:
        job = await run(proxy)
        await raw.take()
        async with proxy.http.post(f"/v2/default/cancel/{job}"):
            pass
        assert await raw.stops() == [job]
        await raw.ping(job)
        assert await raw.stops() == [job]
        await raw.ping()
        assert await raw.stops() == []


async def test_a_run_that_is_not_assigned_to_its_worker_is_stopped(proxy: Proxy) -> None:
    """For example one that was cancelled while the proxy restarted."""
    async with Raw(proxy) as raw:
        job = await run(proxy)
        await raw.take()
        await raw.ping(job, "gone")
        # Its result may have arrived before the ping.
        assert await raw.stops() == []
        await raw.ping(job, "gone")
        assert await raw.stops() == ["gone"]
        await raw.ping(job)
        await raw.ping(job)
        assert await raw.stops() == []


async def test_a_slow_reader_applies_back_pressure_to_its_stream(proxy: Proxy) -> None:
    body = {"messages": [], "stream": True}
    async with Raw(proxy) as raw:
        taking = asyncio.create_task(raw.next_job())
        async with aiohttp.ClientSession(read_bufsize=2**12) as slow:
            asking = asyncio.create_task(slow.post(proxy.url + CHAT, json=body))
            job = (await taking)["id"]
            event = f"data: {'x' * 65_000}\n\n"
            posted = 0

            async def post() -> None:
                nonlocal posted
                while posted < 200:
                    assert await raw.chunk(job, event) == 200
                    posted += 1

            posting = asyncio.create_task(post())
            response = await asking
            mailbox = next(iter(proxy.parts.interactive))
            await until(lambda: mailbox.backlog > 128 * 1024, 10, "it waits")
            before = posted
            await raw.ping(job)
            await raw.stops()
            assert posted == before < 200
            reading = asyncio.create_task(response.read())
            await posting
            await raw.done(job, {"output": []})
            assert len(await reading) == 200 * len(event)


@pytest.mark.parametrize("posted", [[0], [1, 2], [0, 2], [0, 0, 2], []])
async def test_a_stream_with_a_lost_chunk_is_not_reported_as_complete(
    proxy: Proxy, posted: list[int]
) -> None:
    """Also if the worker has posted the end of the stream."""
    events = ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"]
    async with Raw(proxy) as raw:
        taking = asyncio.create_task(raw.next_job())
        asking = asyncio.create_task(proxy.http.post(CHAT, json={"messages": [], "stream": True}))
        job = (await taking)["id"]
        for index in posted:
            await raw.chunk(job, events[index])
        await raw.done(job, {"output": events})
        text = await (await asking).text()
        is_whole = "[DONE]" in text and "Part of the response was lost" not in text
        assert is_whole == (not posted)
        passed_on = [event for index in posted if "[DONE]" not in (event := events[index])]
        assert text.startswith("".join(passed_on))


async def test_a_run_continues_after_a_restart_of_the_proxy(proxy: Proxy) -> None:
    parts = proxy.parts
    store = parts.store
    job_id = await run(proxy)
    [job] = await store.take(
        EndpointId("default"), WorkerId("pod-1"), limit=1, light_limit=0, now=Millis(0), run=1
    )
    parts.orphans.find([job])
    async with Raw(proxy) as raw:
        assert await raw.chunk(job_id, "a") == 200
        assert await raw.done(job_id, {"output": ["a"]}, stream=True) == 200
    assert (await status(proxy, job_id))["output"] == ["a"]


async def test_open_polls_are_answered_when_the_proxy_shuts_down() -> None:
    async with serving(poll_hold=30.0) as proxy:
        raw = Raw(proxy)
        polling = asyncio.gather(raw.take(), raw.stops())
        await until(lambda: any(one.credit for one in proxy.parts.fleet), what="it polls")
    assert await asyncio.wait_for(polling, 5) == [None, []]
    await raw.__aexit__()
