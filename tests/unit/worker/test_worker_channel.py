import asyncio
import random
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request as HandshakeRequest
from websockets.http11 import Response

from proxy.wire.flow import Outbox
from proxy.wire.frames import PROTOCOL, Chunk, Credit, Frame, Heartbeat, Hello, Log, ToWorker
from tests.unit.worker.support import DEADLINE, DIALLER, fake_proxy, until
from worker_vllm.channel.connection import (
    Channel,
    ChannelTimeouts,
    OrphanedError,
    WakingOutbox,
    pause_before_dialling,
)
from worker_vllm.channel.dial import CLOSE_CODE_LOST, Dialler, DialRefusedError, Link


class QuietPeer:
    """A peer that only sends a `Hello`."""

    def __init__(self) -> None:
        self.sent_frames: list[Frame] = []
        self.disconnects = 0

    def hello(self, _: Outbox) -> Hello:
        return Hello(PROTOCOL, "w", "none")

    def credit(self, _: Outbox) -> Credit:
        return Credit(0, 0)

    def receive(self, _: Outbox, frame: ToWorker) -> None:
        raise AssertionError(frame)

    def sent(self, _: Outbox, frames: Sequence[Frame]) -> None:
        self.sent_frames += frames

    def disconnected(self, _: Outbox) -> None:
        self.disconnects += 1


def channel_to(
    url: str, timeouts: ChannelTimeouts | None = None
) -> tuple[Channel, WakingOutbox, QuietPeer]:
    peer = QuietPeer()
    channel = Channel(Link(url, "secret", "w"), peer, timeouts or ChannelTimeouts(5.0), DIALLER)
    return channel, channel.outbox, peer


@pytest.mark.parametrize("status", [401, 403, 404, 409, 426])
async def test_a_rejected_handshake_is_final_and_has_a_reason(status: int) -> None:
    def refuse(socket: ServerConnection, request: HandshakeRequest) -> Response:
        assert request.headers["authorization"] == "Bearer secret"
        return socket.respond(HTTPStatus(status), "this is why")

    async def nothing(_: ServerConnection) -> None: ...

    async with serve(nothing, "127.0.0.1", 0, process_request=refuse) as server:
        channel, _, _ = channel_to(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(DialRefusedError, match=f"answered {status}: this is why"):
            await channel.run()


async def test_a_rejected_handshake_is_not_final_if_the_loading_connection_was_accepted() -> None:
    """The response comes from something in front of the proxy, and the model is loaded already."""
    tries = 0

    def refuse(socket: ServerConnection, _: HandshakeRequest) -> Response | None:
        nonlocal tries
        tries += 1
        return socket.respond(HTTPStatus.NOT_FOUND, "no such tunnel") if tries < 3 else None

    async def refuse_hello(socket: ServerConnection) -> None:
        await socket.close(4409, "another model")

    async with serve(refuse_hello, "127.0.0.1", 0, process_request=refuse) as server:
        link = Link(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", "secret", "w")
        channel = Channel(link, QuietPeer(), ChannelTimeouts(0.02), DIALLER, was_accepted=True)
        # The proxy's own close code stays final.
        with pytest.raises(DialRefusedError, match="another model"):
            await channel.run()

    assert tries == 3


async def test_a_rejected_hello_is_final_and_has_a_reason() -> None:
    async def refuse(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.close(4409, "another model")

    async with serve(refuse, "127.0.0.1", 0) as server:
        channel, _, _ = channel_to(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(DialRefusedError, match="another model"):
            await channel.run()


async def test_a_worker_that_was_accepted_dials_again_after_any_close() -> None:
    lines = 0

    async def serve_line(socket: ServerConnection) -> None:
        nonlocal lines
        lines += 1
        await socket.recv()
        # The heartbeat: the worker counts as accepted.
        await socket.recv()
        await socket.close(4409, "another model")

    async with serve(serve_line, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        channel, _, peer = channel_to(url, ChannelTimeouts(0.01, accepted=0.0))
        running = asyncio.create_task(channel.run())
        await until(lambda: lines > 1)
        assert not running.done()
        assert peer.disconnects >= 1
        running.cancel()
        await asyncio.wait({running})


async def test_an_unreachable_proxy_is_dialled_until_the_worker_is_orphaned() -> None:
    listener = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    async with listener:
        channel, _, _ = channel_to(
            f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}",
            ChannelTimeouts(5.0, orphan=0.3),
        )
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(OrphanedError):
                await channel.run()


async def test_frames_of_one_turn_are_sent_in_one_message_control_first() -> None:
    async with fake_proxy() as proxy:
        channel, outbox, peer = channel_to(proxy.url)
        running = asyncio.create_task(channel.run())
        line = await proxy.next_line()
        outbox.put_in_lane(Chunk("j", 1, b"1"))
        outbox.put_in_lane(Chunk("k", 1, b"2"))
        outbox.put(Log("hello"))
        await line.until(lambda: len(line.messages) > 1)
        await channel.close()
        await running

    assert line.messages[1] == [Log("hello"), Chunk("j", 1, b"1"), Chunk("k", 1, b"2")]
    assert peer.sent_frames == line.frames


async def test_heartbeats_are_sent_at_their_interval() -> None:
    async with fake_proxy() as proxy:
        channel, _, _ = channel_to(proxy.url, ChannelTimeouts(0.01))
        running = asyncio.create_task(channel.run())
        line = await proxy.next_line()
        await line.until(lambda: line.frames.count(Heartbeat()) >= 3)
        await channel.close()
        await running


async def test_closing_flushes_the_outbox_and_stops_dialling() -> None:
    async with fake_proxy() as proxy:
        channel, outbox, _ = channel_to(proxy.url)
        running = asyncio.create_task(channel.run())
        line = await proxy.next_line()
        for number in range(100):
            outbox.put_in_lane(Chunk("j", number, b"x" * 10_000))
        await channel.close(1001, "bye")
        await running
        await line.socket.wait_closed()
        await line.until(lambda: len(line.of("j")) == 100)

    assert (line.socket.close_code, line.socket.close_reason) == (1001, "bye")


async def test_a_message_of_another_protocol_closes_the_connection() -> None:
    async with fake_proxy() as proxy:
        channel, _, _ = channel_to(proxy.url)
        running = asyncio.create_task(channel.run())
        line = await proxy.next_line()
        await line.socket.send(b"\x93nonsense")
        async with asyncio.timeout(DEADLINE):
            await line.socket.wait_closed()
        assert line.socket.close_code == 1002
        # The worker dials again.
        assert isinstance((await proxy.next_line()).frames[0], Hello)
        await channel.close()
        await running


@pytest.mark.parametrize("failures", [0, 1, 4, 10])
def test_a_pause_is_at_most_a_heartbeat_interval_so_that_runs_survive_any_outage(
    failures: int,
) -> None:
    pauses = {pause_before_dialling(failures, 5.0, random.uniform) for _ in range(200)}
    assert max(pauses) <= 5.0
    assert min(pauses) >= 0.25
    # The pauses are random.
    assert len(pauses) > 100


def test_pauses_follow_from_their_source_of_randomness() -> None:
    first, second = random.Random(1).uniform, random.Random(1).uniform
    assert [pause_before_dialling(2, 5.0, first) for _ in range(9)] == [
        pause_before_dialling(2, 5.0, second) for _ in range(9)
    ]


async def test_a_channel_uses_the_dialler_that_it_is_given() -> None:
    dialled: list[str] = []
    drawn: list[tuple[float, float]] = []

    async def connect_at_third(url: str, **options: Any) -> ClientConnection:
        dialled.append(url)
        if len(dialled) < 3:
            raise ConnectionRefusedError
        return await connect(proxy.url, **options)

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    async with fake_proxy() as proxy:
        dialler = Dialler(connect_at_third, draw)
        channel = Channel(
            Link("ws://elsewhere", "token", "w"),
            QuietPeer(),
            ChannelTimeouts(5.0),
            dialler,
        )
        running = asyncio.create_task(channel.run())
        await proxy.next_line()
        await channel.close()
        await running

    assert dialled == ["ws://elsewhere"] * 3
    assert drawn == [(0.25, 0.5), (0.5, 1.0)]


async def test_a_connection_that_accepts_no_data_is_lost() -> None:
    """As behind a network that drops everything: pings wait behind the data."""
    connections: asyncio.Queue[ServerConnection] = asyncio.Queue()
    may_read = asyncio.Event()

    async def accept(socket: ServerConnection) -> None:
        connections.put_nowait(socket)
        await may_read.wait()
        async for _ in socket:
            pass

    timeouts = ChannelTimeouts(5.0, stall=0.3)
    async with serve(accept, "127.0.0.1", 0, max_queue=1) as server, asyncio.TaskGroup() as group:
        port = server.sockets[0].getsockname()[1]
        channel, outbox, peer = channel_to(f"ws://127.0.0.1:{port}", timeouts)
        running = group.create_task(channel.run())
        first = await connections.get()
        for number in range(400):
            outbox.put_in_lane(Chunk(f"j{number}", 1, bytes(64 * 1024)))
        async with asyncio.timeout(20):
            await until(lambda: peer.disconnects == 1)
            may_read.set()
            await connections.get()
            await first.wait_closed()
        # The proxy would take a normal close code for the end of the worker, and end its runs.
        assert first.close_code == CLOSE_CODE_LOST
        running.cancel()
