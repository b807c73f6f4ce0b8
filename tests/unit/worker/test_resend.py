"""A worker keeps the output that its proxy has not confirmed, and sends it again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.wire.frames import (
    ALL_FRAMES,
    FEATURES,
    PART_BYTES,
    RESEND,
    SENT_AGAIN,
    Acknowledge,
    Chunk,
    End,
    Head,
    Hello,
    Hold,
    Stop,
    Welcome,
)
from tests.unit.worker.support import FakeProxy, Line, chat, fake_proxy, until, working
from worker_vllm.engine.scripted import ScriptedEngine
from worker_vllm.run import OutputGoneError, ResendBuffer, parts_of

PACED: dict[str, Any] = {"max_tokens": 30, "seed": 10_000}
TEXT = [b'"m %d "' % number for number in range(30)]


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    async with fake_proxy() as running:
        yield running


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(stage=lambda _: None)


async def welcomed(proxy: FakeProxy) -> Line:
    """Return the next connection, whose proxy confirms output."""
    line = await proxy.next_line()
    await line.send(Welcome([RESEND]))
    return line


async def holds(line: Line) -> list[Hold]:
    return (await line.wait_for(Hello)).holds


async def test_a_worker_names_its_features(proxy: FakeProxy, engine: ScriptedEngine) -> None:
    async with working(engine, proxy.url):
        hello = await (await proxy.next_line()).wait_for(Hello)
        assert hello.features == list(FEATURES)


async def test_frames_that_are_not_confirmed_are_sent_again(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        first = await welcomed(proxy)
        await first.send_job("j", chat("m", **PACED))
        await first.until(lambda: len(first.of("j")) >= 10)
        await first.socket.close()
        second = await welcomed(proxy)
        assert await holds(second) == [Hold("j", 1, SENT_AGAIN)]
        # The head and five chunks have arrived, says the proxy.
        await second.send(Acknowledge("j", 1, 6))
        assert (await second.wait_for(End, "j")).ending == "completed"
        frames = first.of("j")[:6] + second.of("j")
        assert isinstance(frames[0], Head)
        text = b"".join(frame.data for frame in frames if isinstance(frame, Chunk))
        assert [text.count(token) for token in TEXT] == [1] * len(TEXT)


async def test_a_run_sends_nothing_before_the_proxy_has_said_where_to_continue(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        first = await welcomed(proxy)
        await first.send_job("j", chat("m", **PACED))
        await first.wait_for(Chunk, "j")
        await first.socket.close()
        second = await welcomed(proxy)
        # An acknowledgement of another attempt says nothing about this one.
        await second.send(Acknowledge("j", 2, 0))
        await second.send_job("k", chat("k", max_tokens=60, seed=10_000))
        await second.wait_for(End, "k")
        assert second.of("j") == []
        await second.send(Acknowledge("j", 1, 0))
        await second.wait_for(End, "j")
        assert [second.text("j").count(token) for token in TEXT] == [1] * len(TEXT)


async def test_an_end_is_sent_again_until_it_is_confirmed(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        line = await welcomed(proxy)
        await line.send_job("j", chat("m"))
        await line.wait_for(End, "j")
        for _ in range(2):
            count = len(line.of("j"))
            await line.socket.close()
            line = await welcomed(proxy)
            assert await holds(line) == [Hold("j", 1, SENT_AGAIN)]
            await line.send(Acknowledge("j", 1, 0))
            await line.wait_for(End, "j")
            assert len(line.of("j")) == count
        await line.send(Acknowledge("j", 1, ALL_FRAMES))
        await line.send_job("k", chat())
        await line.wait_for(End, "k")
        await line.socket.close()
        assert await holds(await welcomed(proxy)) == [Hold("k", 1, SENT_AGAIN)]


@pytest.mark.parametrize("tokens", [3, 1_000_000])
async def test_a_stop_after_a_lost_connection_is_answered(
    proxy: FakeProxy, engine: ScriptedEngine, tokens: int
) -> None:
    """Both a run that has ended and one that goes on."""
    async with working(engine, proxy.url):
        first = await welcomed(proxy)
        await first.send_job("j", chat("m", max_tokens=tokens, seed=1_000))
        await first.until(lambda: len(first.of("j")) >= 4)
        await first.socket.close()
        second = await welcomed(proxy)
        await second.send(Stop("j", 1))
        assert (await second.wait_for(End, "j")).ending == "released"
        await until(lambda: engine.running == 0)
        await second.send_job("k", chat())
        await second.wait_for(End, "k")
        assert second.of("j") == second.ends("j")


async def test_a_run_is_lost_if_the_proxy_has_lost_what_it_had_confirmed(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url):
        first = await welcomed(proxy)
        await first.send_job("j", chat("m", max_tokens=1_000_000, seed=1_000))
        await first.until(lambda: len(first.of("j")) >= 10)
        await first.send(Acknowledge("j", 1, 8))
        await first.send_job("k", chat())
        await first.wait_for(End, "k")
        await first.socket.close()
        second = await welcomed(proxy)
        await second.send(Acknowledge("j", 1, 3))
        end = await second.wait_for(End, "j")
        assert (end.ending, end.code) == ("lost", "output_lost")


async def test_a_drain_waits_until_the_last_end_is_confirmed(
    proxy: FakeProxy, engine: ScriptedEngine
) -> None:
    async with working(engine, proxy.url) as worker, asyncio.TaskGroup() as group:
        line = await welcomed(proxy)
        await line.send_job("j", chat())
        await line.wait_for(End, "j")
        draining = group.create_task(worker.runtime.drain(20))
        await line.wait_for(Hello)
        assert not draining.done()
        await line.send(Acknowledge("j", 1, ALL_FRAMES))
        await draining


def test_confirmed_frames_are_dropped() -> None:
    kept = ResendBuffer()
    frames = [Head("j", 1, 200, ""), Chunk("j", 1, b"ab"), Chunk("j", 1, b"c"), End("j", 1, "lost")]
    for frame in frames:
        kept.add(frame)
    assert (list(kept), kept.size) == (frames, 3)
    kept.confirm(2)
    kept.confirm(2)
    assert (list(kept), kept.size) == (frames[2:], 1)
    with pytest.raises(OutputGoneError):
        kept.confirm(1)
    kept.confirm(9)
    assert (list(kept), kept.size) == ([], 0)


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
def test_the_parts_of_a_chunk_are_the_chunk(size: int, *, more: bool) -> None:
    parts = list(parts_of(Chunk("j", 1, b"x" * size, more=more)))
    assert b"".join(part.data for part in parts) == b"x" * size
    assert all(part.more for part in parts[:-1])
    assert parts[-1].more is more
    assert all(len(part.data) <= PART_BYTES for part in parts)
