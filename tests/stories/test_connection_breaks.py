"""Interrupted worker connections: runs resume, and lost output is reported and not repeated."""

import asyncio
import json
from typing import Any

import pytest
from harness.network.cable import cable
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.process import worker

pytestmark = pytest.mark.slow

# Long intervals between tokens: most of the time, no output is in flight.
SLOW: dict[str, Any] = {"max_tokens": 12, "seed": 300_000}


async def test_a_stream_survives_a_short_interruption() -> None:
    """No output is in flight between two tokens, so the run continues on the new connection."""
    async with serving(lease=10.0) as proxy, cable(proxy.url) as line, worker(proxy, url=line.url):
        before = line.carried
        async with proxy.http.post(CHAT, json=chat("on", stream=True, **SLOW)) as response:
            seen = await response.content.readuntil(b"on 3 ")
            seen += await response.content.readuntil(b"\n\n")
            line.cut()
            events = [event for event in (seen + await response.read()).split(b"\n\n") if event]
        assert line.carried == before + 1
    assert _text(events) == "".join(f"on {number} " for number in range(12))


async def test_a_response_without_streaming_survives_a_short_interruption() -> None:
    async with (
        serving(lease=10.0) as proxy,
        cable(proxy.url) as line,
        worker(proxy, url=line.url) as one,
    ):
        call = asyncio.create_task(_status(proxy, chat("on", max_tokens=10, seed=50_000)))
        await until(lambda: any(known.holds for known in proxy.parts.fleet))
        await until(lambda: _started(one.lines))
        line.cut()
        assert await call == 200
        assert sum("event=job.started" in text for text in one.lines) == 1


async def test_output_lost_in_flight_is_sent_again() -> None:
    """Tokens are in flight when the connection is cut; the worker has kept them."""
    async with (
        serving(lease=10.0) as proxy,
        cable(proxy.url) as line,
        worker(proxy, url=line.url) as one,
    ):
        async with proxy.http.post(
            CHAT, json=chat("gap", stream=True, max_tokens=3_000, seed=1_000)
        ) as response:
            seen = await response.content.readuntil(b"gap 5 ")
            line.block()
            made = await one.metric(proxy.http, "generation_tokens_total")
            await until(lambda: _at_least(one, proxy, made + 100))
            line.cut()
            line.flow()
            events = [event for event in (seen + await response.read()).split(b"\n\n") if event]
        assert _text(events) == "".join(f"gap {number} " for number in range(3_000))
        await until(lambda: _idle(one, proxy))


async def test_a_stream_is_exact_although_its_connection_breaks_all_the_time() -> None:
    async with (
        serving(lease=10.0) as proxy,
        cable(proxy.url) as line,
        worker(proxy, url=line.url) as one,
    ):
        line.breaks_after = [40_000] * 20
        calls = [
            _stream(proxy, chat(f"c{number}", stream=True, max_tokens=1_000, seed=1_000))
            for number in range(4)
        ]
        texts = await asyncio.gather(*calls)
        assert not line.breaks_after
        for number, text in enumerate(texts):
            assert text == "".join(f"c{number} {token} " for token in range(1_000))
        await until(lambda: _idle(one, proxy))


async def test_a_long_answer_is_whole_although_its_connection_breaks() -> None:
    async with (
        serving(lease=10.0) as proxy,
        cable(proxy.url) as line,
        worker(proxy, url=line.url) as one,
    ):
        line.breaks_after = [150_000] * 5
        request = chat("long " * 20, max_tokens=8_000, seed=1)
        async with proxy.http.post(CHAT, json=request) as response:
            assert response.status == 200
            message = (await response.json())["choices"][0]["message"]["content"]
        assert not line.breaks_after
        assert message.count("long") == 20 * 8_000
        assert sum("event=job.started" in text for text in one.lines) == 1


async def test_a_worker_that_does_not_reconnect_is_lost(proxy: Proxy) -> None:
    async with cable(proxy.url) as line, worker(proxy, url=line.url):
        async with proxy.http.post(CHAT, json=chat("off", stream=True, **SLOW)) as response:
            seen = await response.content.readuntil(b"off 1 ")
            line.block()
            events = [event for event in (seen + await response.read()).split(b"\n\n") if event]
        assert json.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "worker_lost"
        line.cut()
        line.flow()
        await until(lambda: proxy.ready == 1)  # it reconnects
        async with proxy.http.post(CHAT, json=chat("back")) as response:
            assert response.status == 200


async def test_a_run_stops_if_its_client_disconnects_during_an_interruption() -> None:
    async with (
        serving(lease=10.0) as proxy,
        cable(proxy.url) as line,
        worker(proxy, url=line.url) as one,
    ):
        async with proxy.http.post(CHAT, json=chat("off", stream=True, **SLOW)) as response:
            await response.content.readuntil(b"off 1 ")
            line.block()
            line.cut()
            response.close()
            await until(lambda: len(proxy.parts.interactive) == 0)
        line.flow()
        await until(lambda: _idle(one, proxy))


async def test_a_job_cancelled_during_an_interruption_is_stopped_afterwards() -> None:
    async with (
        serving(lease=10.0) as proxy,
        cable(proxy.url) as line,
        worker(proxy, url=line.url) as one,
    ):
        queue = QueueClient(proxy)
        job = await queue.run(prompt(stream=True, max_tokens=100, seed=300_000))
        await until(lambda: _has_output(queue, job), what="its first output")
        line.block()
        line.cut()
        await until(
            lambda: all(known.port is None for known in proxy.parts.fleet),
            what="the worker is away",
        )
        assert (await queue.call("POST", f"cancel/{job}"))["status"] == "CANCELLED"
        line.flow()
        await until(lambda: _idle(one, proxy), what="the engine is idle")


async def test_a_body_that_never_arrives_counts_no_failure() -> None:
    async with (
        serving(lease=10.0) as proxy,
        cable(proxy.url) as line,
        worker(proxy, url=line.url) as one,
    ):
        queue = QueueClient(proxy)
        line.breaks_after = [3_000_000] * 4
        ended = await queue.end(await queue.run(prompt("x" * 9_000_000)))
        assert not line.breaks_after
        assert (ended["status"], ended["retries"]) == ("COMPLETED", 0)
        assert sum("event=job.started" in text for text in one.lines) == 1


async def _has_output(queue: QueueClient, job: str) -> bool:
    return bool((await queue.stream(job, "?after=0"))["stream"])


async def _status(proxy: Proxy, request: dict[str, Any]) -> int:
    async with proxy.http.post(CHAT, json=request) as response:
        await response.read()
        return response.status


async def _stream(proxy: Proxy, request: dict[str, Any]) -> str:
    async with proxy.http.post(CHAT, json=request) as response:
        return _text([event for event in (await response.read()).split(b"\n\n") if event])


def _text(events: list[bytes]) -> str:
    """Return the text of a stream that ended well."""
    assert events[-1] == b"data: [DONE]"
    return "".join(
        json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"].get("content", "")
        for event in events[:-1]
    )


def _started(lines: list[str]) -> bool:
    return any("event=job.started" in line for line in lines)


async def _at_least(one: Any, proxy: Proxy, wanted: float) -> bool:
    return bool(await one.metric(proxy.http, "generation_tokens_total") >= wanted)


async def _idle(one: Any, proxy: Proxy) -> bool:
    running = await one.metric(proxy.http, "num_requests_running")
    return running == 0 and not any(known.holds for known in proxy.parts.fleet)
