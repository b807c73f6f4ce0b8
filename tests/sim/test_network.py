"""The simulated loop and network, with an echo server instead of the proxy."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest

from sim.loop import SimLoop, StuckError
from sim.network import Network
from sim.node import Node
from sim.transport import SimSocket

ADDRESS = ("127.0.0.1", 8000)


class Pair:
    """A server and a client node in one loop."""

    def __init__(self, seed: int) -> None:
        self.loop = SimLoop(Random(seed), Random(seed))
        self.network = Network(self.loop, Random(seed), lambda _: None)
        self.server = Node("server")
        self.client = Node("client")

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the client's node."""
        return self.loop.run_until_complete(self.client.start(self.loop, work))

    def serve(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Listen in the server's node."""
        sock: Any = SimSocket(ADDRESS)
        self.server.context.run(self.network.listen, factory, sock)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@contextmanager
def pair(seed: int = 1) -> Iterator[Pair]:
    made = Pair(seed)
    made.serve(Echo)
    try:
        yield made
    finally:
        made.network.close()
        made.loop.close()


@pytest.mark.parametrize("seed", range(20))
def test_all_bytes_come_back_in_order(seed: int) -> None:
    data = bytes(range(256)) * 2_000

    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection(*ADDRESS)
        writer.write(data)
        found = await reader.readexactly(len(data))
        writer.close()
        return found

    with pair(seed) as made:
        assert made.run(talk()) == data


def test_a_reader_that_stops_pauses_the_writer() -> None:
    async def talk() -> int:
        _, writer = await asyncio.open_connection(*ADDRESS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                while True:
                    writer.write(bytes(10_000))
                    await writer.drain()
        size = writer.transport.get_write_buffer_size()  # type: ignore[attr-defined]
        writer.transport.abort()
        return size

    with pair() as made:
        made.serve(asyncio.Protocol)
        made.loop.call_later(1.0, setattr, made.server, "is_stopped", True)
        size = made.run(talk())
    assert 0 < size < 1_000_000


def test_a_reset_is_seen_by_the_reader() -> None:
    async def talk() -> None:
        reader, _ = await asyncio.open_connection(*ADDRESS)
        [connection] = made.network.connections.values()
        connection.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)

    with pair() as made:
        made.run(talk())


def test_a_silent_connection_delivers_nothing() -> None:
    async def talk() -> None:
        reader, writer = await asyncio.open_connection(*ADDRESS)
        [connection] = made.network.connections.values()
        connection.is_silent = True
        writer.write(b"lost")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await reader.read(1)
        writer.close()

    with pair() as made:
        made.run(talk())


def test_a_killed_server_ends_its_connections_and_refuses_others() -> None:
    async def talk() -> None:
        reader, writer = await asyncio.open_connection(*ADDRESS)
        made.server.kill()
        assert await reader.read(1) == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*ADDRESS)

    with pair() as made:
        made.run(talk())


def test_a_killed_node_does_not_run_its_finally_blocks() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            ended.append(1)

    with pair() as made:
        task = made.server.start(made.loop, work())
        made.run(asyncio.sleep(0.5))
        made.server.kill()
        made.run(asyncio.sleep(5))
        assert not ended
        assert not task.done()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()


def test_a_stopped_node_continues_where_it_was() -> None:
    times = []

    async def work() -> None:
        await asyncio.sleep(1)
        times.append(made.loop.time())

    with pair() as made:
        made.server.start(made.loop, work())
        made.server.is_stopped = True
        made.loop.call_later(7.0, made.loop.resume, made.server)
        made.run(asyncio.sleep(20))
    assert times == [8.0]


def test_a_loop_without_work_is_stuck() -> None:
    with pair() as made, pytest.raises(StuckError):
        made.run(asyncio.Event().wait())
