import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from proxy.wire.frames import (
    PART_BYTES,
    STREAM_WINDOW,
    Body,
    Chunk,
    Credit,
    End,
    Head,
    Hello,
    Hold,
    Job,
    Pause,
    Resume,
    Stop,
)
from tests.unit.worker.support import CHAT, AppEngine, FakeProxy, chat, fake_proxy, until, working
from worker_vllm.asgi import Receive, Request, Scope, Send
from worker_vllm.engine.scripted import ScriptedEngine
from worker_vllm.run import INTERNAL_ERROR, OUTBOX_HIGH_BYTES

ENDLESS: dict[str, Any] = {"max_tokens": 1_000_000, "seed": 1000}


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    async with fake_proxy() as running:
        yield running


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(stage=lambda _: None)


async def test_a_worker_announces_its_name_models_and_credit(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url, slots=7):
        line = await proxy.next_line()

        hello, credit = line.frames[:2]
        assert isinstance(hello, Hello)
        assert (hello.worker, hello.engine, [model.id for model in hello.models]) == (
            "w-test",
            "scripted",
            ["scripted"],
        )
        assert credit == Credit(7, 32)


async def test_a_job_yields_a_head_chunks_and_one_end(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat("m", max_tokens=2))

        assert (await line.wait_for(End, "j")).ending == "completed"
        head, *chunks, _ = line.of("j")
        assert head == Head("j", 1, 200, "text/event-stream; charset=utf-8")
        assert all(isinstance(chunk, Chunk) for chunk in chunks)
        assert b"m 0 " in line.text("j")
        assert line.text("j").endswith(b"data: [DONE]\n\n")


async def test_a_job_starts_with_the_last_part_of_its_body(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    request = chat("x" * 1000)
    third = len(request.body) // 3
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send(Job("j", 1, "POST", CHAT, "application/json", len(request.body)))
        await line.send(Body("j", 1, request.body[:third], more=True))
        await line.send(Body("j", 1, request.body[third : 2 * third], more=True))
        await line.send(Body("j", 1, request.body[2 * third :]))

        assert (await line.wait_for(End, "j")).ending == "completed"


@pytest.mark.parametrize("size", [3, 5])
async def test_a_body_of_another_size_than_announced_is_rejected(
    proxy: FakeProxy, engine: ScriptedEngine, size: int
) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send(Job("j", 1, "POST", CHAT, "application/json", size), Body("j", 1, b"1234"))

        assert (await line.wait_for(End, "j")).code == "bad_body"


async def test_a_job_without_body_starts_at_once(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send(Job("j", 1, "GET", "/v1/models", "", 0, light=True))

        assert (await line.wait_for(End, "j")).ending == "completed"


@pytest.mark.parametrize(
    ("fault", "ending", "code"),
    [
        ("error_event:1", "failed", "error_event"),
        ("cut:1", "lost", "worker_lost"),
        ("status:503", "failed", "http_503"),
        ("engine_dead:1", "lost", "engine_dead"),
    ],
)
async def test_the_ending_of_a_run_is_reported(
    proxy: FakeProxy, engine: ScriptedEngine, fault: str, ending: str, code: str
) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat(fault=fault))

        end = await line.wait_for(End, "j")
        assert (end.ending, end.code) == (ending, code)


async def test_a_bug_of_the_worker_is_not_described_to_the_client(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        worker.runtime._engine = AppEngine(None)  # type: ignore[arg-type]
        await line.send_job("j", chat())

        end = await line.wait_for(End, "j")
        assert (end.ending, end.code, end.message) == ("lost", "worker_error", INTERNAL_ERROR)


async def test_a_stopped_run_releases_the_engine_and_ends_once(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat(**ENDLESS))
        await line.wait_for(Chunk, "j")
        await line.send(Stop("j", 1), Stop("j", 1))

        await line.wait_for(End, "j")
        assert engine.running == 0
        await line.send_job("k", chat())
        await line.wait_for(End, "k")
        assert len(line.ends("j")) == 1
        assert isinstance(line.of("j")[-1], End)


async def test_a_stop_may_come_before_the_body_or_with_it(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    body = chat().body
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send(Job("a", 1, "POST", CHAT, "", len(body)), Stop("a", 1))
        await line.send(Job("b", 1, "POST", CHAT, "", len(body)), Body("b", 1, body), Stop("b", 1))

        await line.wait_for(End, "a")
        await line.wait_for(End, "b")
        assert line.of("a") == line.ends("a")
        assert line.of("b") == line.ends("b")


async def test_duplicates_and_stale_frames_are_ignored(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat(**ENDLESS), attempt=2)
        await line.wait_for(Head, "j")
        await line.send_job("j", chat(), attempt=2)
        await line.send_job("j", chat(), attempt=1)
        await line.send(Stop("j", 1), Stop("other", 1))
        await line.send_job("k", chat())
        await line.wait_for(End, "k")

        assert engine.running == 1
        assert not [end for end in line.ends("j") if end.attempt == 2]


async def test_a_stop_is_always_answered(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    """It may have overtaken its job, which then never arrives.

    Without an `End` the proxy would count its slot forever.
    """
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send(Stop("never seen", 3))
        end = await line.wait_for(End, "never seen")
    assert end == End("never seen", 3, "released", "unknown_run")


async def test_a_newer_attempt_replaces_the_older(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat(**ENDLESS), attempt=1)
        await line.wait_for(Head, "j")
        await line.send_job("j", chat(), attempt=2)

        await line.until(lambda: len(line.ends("j")) == 2)
        endings = [(end.attempt, end.ending, end.code) for end in line.ends("j")]
        assert endings == [(1, "released", "replaced"), (2, "completed", "")]


async def test_a_job_beyond_the_slots_is_returned(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    async with working(engine, proxy.url, slots=1):
        line = await proxy.next_line()
        await line.send_job("a", chat(**ENDLESS))
        await line.send_job("b", chat())
        await line.send_job("light", Request("GET", "/version"), light=True)

        end = await line.wait_for(End, "b")
        assert (end.ending, end.code) == ("released", "no_slot")
        assert (await line.wait_for(End, "light")).ending == "completed"


async def test_a_paused_job_stops_sending_and_others_continue(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        await line.send_job("j", chat(**ENDLESS))
        await line.wait_for(Chunk, "j")
        await line.send(Pause("j", 1))
        await line.send_job("k", chat(max_tokens=100, seed=1000))
        # The pause has been read, and it concerns one job only.
        await line.wait_for(End, "k")
        before = len(line.of("j"))
        await line.send_job("l", chat(max_tokens=100, seed=1000))
        await line.wait_for(End, "l")

        assert len(line.of("j")) == before
        # A paused job does not indicate a hanging engine.
        assert not worker.runtime.is_waiting_for_engine
        await line.send(Resume("j", 1))
        await line.until(lambda: len(line.of("j")) > before)


async def test_a_stream_keeps_to_its_window(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    """The window holds for a fast engine too, without any pause from the proxy."""
    async with working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        await line.send_job("j", chat("x" * 500, max_tokens=1_000_000))
        await until(lambda: len(line.text("j")) >= STREAM_WINDOW)
        await line.send_job("k", chat(max_tokens=100, seed=1000))
        await line.wait_for(End, "k")
        sent = len(line.text("j"))

        assert sent < STREAM_WINDOW + 2 * PART_BYTES
        assert not worker.runtime.is_waiting_for_engine
        await line.send(Resume("j", 1))
        await until(lambda: len(line.text("j")) >= sent + STREAM_WINDOW)


async def test_a_pause_ends_with_its_connection(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    """The proxy pauses the run again over the next connection if necessary.

    A run that stayed paused would never end.
    """
    async with working(engine, proxy.url):
        first = await proxy.next_line()
        await first.send_job("j", chat(max_tokens=300, seed=2000))
        await first.wait_for(Chunk, "j")
        await first.send(Pause("j", 1))
        await first.send_job("k", chat(max_tokens=100, seed=1000))
        # The pause has been read.
        await first.wait_for(End, "k")
        await first.socket.close(1012)
        await first.socket.wait_closed()
        second = await proxy.next_line()

        assert (await second.wait_for(End, "j")).ending == "completed"


async def test_the_engine_of_a_paused_job_waits(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    async with working(engine, proxy.url):
        line = await proxy.next_line()
        await line.send_job("j", chat(max_tokens=1_000_000))
        await line.wait_for(Chunk, "j")
        await line.send(Pause("j", 1))
        await line.send_job("k", chat(max_tokens=300, seed=1000))
        await line.wait_for(End, "k")
        made = engine.generation_tokens
        await line.send_job("l", chat(max_tokens=100, seed=1000))
        await line.wait_for(End, "l")

        assert engine.generation_tokens == made + 100


async def test_the_backlog_for_a_proxy_that_does_not_read_is_bounded(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        await line.send_job("j", chat("x" * 500, max_tokens=1_000_000))
        await line.wait_for(Chunk, "j")
        # From now on all frames wait in the outbox.
        await line.socket.close(1012)
        backlog = [worker.outbox.backlog("j")]
        for _ in range(1000):
            await asyncio.sleep(0)
            backlog.append(worker.outbox.backlog("j"))

        assert max(backlog) < OUTBOX_HIGH_BYTES + 256 * 1024


async def test_a_connection_is_replaced_without_losing_a_byte(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        first = await proxy.next_line()
        await first.send_job("j", chat("m", max_tokens=300, seed=2000))
        await first.wait_for(Chunk, "j")
        await first.send(Pause("j", 1))
        await first.send_job("k", chat(max_tokens=100, seed=1000))
        # The pause has been read: no frame of j is in flight.
        await first.wait_for(End, "k")
        half = Job("half", 1, "POST", CHAT, "", 100)
        await first.send(half, Body("half", 1, b"1234567890", more=True))
        await first.socket.close(1012)
        await first.socket.wait_closed()
        second = await proxy.next_line()

        hello = await second.wait_for(Hello)
        # "k" has just ended, and its end could have been lost.
        assert hello.holds == [Hold(job, 1, len(first.of(job))) for job in ("j", "k")]
        assert (await second.wait_for(End, "j")).ending == "completed"
        text = first.text("j") + second.text("j")
        assert [text.count(b'"m %d "' % number) for number in range(300)] == [1] * 300


async def test_a_drain_finishes_running_jobs_and_returns_the_others(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        await line.send_job("running", chat(max_tokens=20, seed=10_000))
        await line.wait_for(Chunk, "running")
        await line.send(Job("arriving", 1, "POST", CHAT, "", 100))
        await line.send_job("mute", chat(stream=False, **ENDLESS))
        await until(lambda: engine.running > 1)
        await worker.runtime.drain(2)
        await worker.channel.close(1001, "drained")
        await worker.running

        endings = {end.job: end.ending for end in line.frames if isinstance(end, End)}
        assert endings == {"running": "completed", "arriving": "released", "mute": "released"}
        assert line.frames.count(Credit(0, 0)) == 1
        assert line.socket.close_code == 1001
        assert engine.running == 0


async def test_a_run_with_output_is_lost_after_the_drain_timeout(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        await line.send_job("j", chat(fault="hang:1"))
        await line.wait_for(Chunk, "j")
        await worker.runtime.drain(0.05)

        end = await line.wait_for(End, "j")
        assert (end.ending, end.code) == ("lost", "worker_stopped")


async def test_a_draining_worker_returns_new_jobs(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    async with working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        await worker.runtime.drain(1)
        await line.send_job("j", chat())

        assert (await line.wait_for(End, "j")).ending == "released"


@pytest.mark.torture
async def test_a_worker_ends_although_its_engine_does_not_release_a_run(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != CHAT:
            await engine.serve(scope, receive, send)
            return
        begun.set()
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()

    async with working(AppEngine(app), proxy.url) as worker:
        line = await proxy.next_line()
        await line.send_job("j", chat())
        await begun.wait()
        await worker.runtime.lose_all("worker_stopped", "the worker stops")

        end = await line.wait_for(End, "j")
        assert (end.ending, end.code) == ("lost", "worker_stopped")
        may_end.set()
