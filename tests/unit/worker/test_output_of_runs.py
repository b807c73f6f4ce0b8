"""The way of a response from the engine's app to the outbox, turn by turn of the event loop."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from proxy.wire.flow import Outbox
from proxy.wire.frames import (
    FEATURES,
    STREAM_WINDOW,
    Body,
    Chunk,
    End,
    Frame,
    Head,
    Job,
    Pause,
    Resume,
    Stop,
    Welcome,
)
from proxy.wire.sse import EVENT_MAX_BYTES
from tests.unit.worker.support import CHAT, DEADLINE, AppEngine
from worker_vllm.asgi import App, Message, Receive, Scope, Send
from worker_vllm.runtime import Runtime

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}
STOPPED = ("released", "stopped")


def part(body: bytes, *, more_body: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


def event(number: int, size: int = 0) -> bytes:
    return b"data: %d %s\n\n" % (number, b"x" * size)


@dataclass
class Scene:
    """A runtime without a connection: the test takes the frames out of the outbox."""

    runtime: Runtime
    outbox: Outbox = field(default_factory=Outbox)
    frames: list[Frame] = field(default_factory=list)

    def start(self, job: str = "j", features: tuple[str, ...] = FEATURES) -> None:
        body = b"{}"
        self.runtime.receive(self.outbox, Welcome(list(features)))
        self.runtime.receive(self.outbox, Job(job, 1, "POST", CHAT, "", len(body)))
        self.runtime.receive(self.outbox, Body(job, 1, body))

    def take(self) -> list[Frame]:
        """Take the frames that are in the outbox; return them."""
        taken: list[Frame] = []
        while (message := self.outbox.next_message()) is not None:
            self.runtime.sent(self.outbox, message[1])
            taken += message[1]
        self.frames += taken
        return taken

    async def turns(self, number: int) -> None:
        for _ in range(number):
            self.take()
            await asyncio.sleep(0)
        self.take()

    async def until_end(self) -> End:
        async with asyncio.timeout(DEADLINE):
            while not (self.frames and isinstance(self.frames[-1], End)):
                self.take()
                await asyncio.sleep(0)
        end = self.frames[-1]
        assert isinstance(end, End)
        return end

    def text(self) -> bytes:
        return b"".join(frame.data for frame in self.frames if isinstance(frame, Chunk))


@asynccontextmanager
async def scene_of(app: App) -> AsyncIterator[Scene]:
    async with asyncio.TaskGroup() as group:
        runtime = Runtime("w", AppEngine(app), [], 1, group)
        yield Scene(runtime)
        await runtime.lose_all("test_over", "")


async def test_events_of_one_turn_are_one_chunk_and_leave_before_the_next_event() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(4):
            await send(part(event(number)))
            await send(part(event(number)))
            await asyncio.sleep(0)
        await send(part(b"", more_body=False))

    async with scene_of(app) as scene:
        scene.start()
        await scene.until_end()

    head, *chunks, _ = scene.frames
    assert isinstance(head, Head)
    assert chunks == [Chunk("j", 1, event(number) * 2) for number in range(4)]


async def test_a_short_response_and_its_end_are_one_message() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(part(b"{}", more_body=False))

    async with scene_of(app) as scene:
        scene.start()
        while not (taken := scene.take()):  # noqa: ASYNC110 - an outbox has no such event
            await asyncio.sleep(0)

    assert [type(frame) for frame in taken] == [Head, Chunk, End]


@pytest.mark.parametrize("turns", range(8))
async def test_nothing_is_sent_after_a_stop_at_any_turn(turns: int) -> None:
    """The app still sends after the disconnect, and its slot is occupied until it has ended."""
    may_end = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        number = 0
        while not may_end.is_set():
            await send(part(event(number)))
            number += 1
            await asyncio.sleep(0)
        await send(part(b"", more_body=False))

    async with scene_of(app) as scene:
        scene.start()
        await scene.turns(turns)
        scene.runtime.receive(scene.outbox, Stop("j", 1))
        before = len(scene.frames)
        if turns:
            await scene.turns(10)
            assert scene.frames[before:] == []
            scene.start("k")
            (refused,) = scene.take()
            assert isinstance(refused, End)
            assert refused.code == "no_slot"
            scene.frames.clear()
        may_end.set()
        end = await scene.until_end()

    assert (end.ending, end.code) == STOPPED
    if turns:
        assert scene.frames == [end]


async def test_a_stop_ends_a_run_whose_app_waits_for_flow_control() -> None:
    steps: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        while not steps:
            await send(part(event(0, 10_000)))
            await asyncio.sleep(0)
            waiting = asyncio.ensure_future(receive())
            done, _ = await asyncio.wait({waiting}, timeout=0)
            waiting.cancel()
            steps.extend(message.result()["type"] for message in done)

    async with scene_of(app) as scene:
        scene.start()
        async with asyncio.timeout(DEADLINE):
            while scene.runtime.is_waiting_for_engine:
                await scene.turns(1)
        await scene.turns(100)
        assert STREAM_WINDOW <= len(scene.text()) < STREAM_WINDOW + EVENT_MAX_BYTES
        before = len(scene.frames)
        scene.runtime.receive(scene.outbox, Stop("j", 1))
        end = await scene.until_end()

    assert (end.ending, end.code) == STOPPED
    assert scene.frames[before:] == [end]
    assert steps == ["http.disconnect"]


@pytest.mark.parametrize("features", [FEATURES, ()])
@pytest.mark.parametrize("seed", range(5))
async def test_a_stream_stays_in_order_under_any_flow_control(
    seed: int, features: tuple[str, ...]
) -> None:
    """Pieces and events have any size; pauses begin and end at any turn."""
    drawn = random.Random(seed)
    sizes = [drawn.choice([0, 10, 3_000, 30_000, 300_000, 700_000]) for _ in range(30)]
    stream = b"".join(event(number, size) for number, size in enumerate(sizes))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        at = 0
        while at < len(stream):
            size = drawn.choice([7, 500, 20_000, 100_000])
            await send(part(stream[at : at + size]))
            at += size
            if drawn.random() < 0.5:
                await asyncio.sleep(0)
        await send(part(b"", more_body=False))

    async with scene_of(app) as scene:
        scene.start(features=features)
        owed = 0
        async with asyncio.timeout(DEADLINE):
            while not (scene.frames and isinstance(scene.frames[-1], End)):
                await asyncio.sleep(0)
                if drawn.random() < 0.3:
                    scene.runtime.receive(scene.outbox, Pause("j", 1))
                taken = scene.take() if drawn.random() < 0.5 else []
                owed += sum(len(frame.data) for frame in taken if isinstance(frame, Chunk))
                if drawn.random() < 0.3:
                    scene.runtime.receive(scene.outbox, Resume("j", 1, owed))
                    owed = 0

    assert scene.text() == stream
    chunks = [frame for frame in scene.frames if isinstance(frame, Chunk)]
    ends = [0]
    for chunk in chunks:
        ends.append(ends[-1] + len(chunk.data))
    # A chunk without `more` ends where an event ends.
    wholes = {end for end, chunk in zip(ends[1:], chunks, strict=True) if not chunk.more}
    assert all(stream[:end].endswith(b"\n\n") for end in wholes)
    assert len(stream) in wholes


async def test_output_that_waited_is_sent_while_the_app_sends_nothing() -> None:
    may_end = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await asyncio.sleep(0)
        for number in range(3):
            await send(part(event(number)))
            await asyncio.sleep(0)
        await may_end.wait()
        await send(part(b"", more_body=False))

    async with scene_of(app) as scene:
        scene.start()
        while not scene.text():
            await scene.turns(1)
        scene.runtime.receive(scene.outbox, Pause("j", 1))
        await scene.turns(10)
        assert scene.text() == event(0)
        scene.runtime.receive(scene.outbox, Resume("j", 1))
        await scene.turns(10)
        assert scene.text() == event(0) + event(1) + event(2)
        may_end.set()
        assert (await scene.until_end()).ending == "completed"
