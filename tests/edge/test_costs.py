"""The cost of a request in counted facts: writes to the client, tasks, and calls of the store."""

import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest_asyncio
from harness.network.raw_http import json_request
from harness.proxy.recorded_store import RecordedStore, recorded
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.counting import counted_tasks
from harness.tools.parsed import MemoryTransport, configuration, connect
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, puppet, whole
from uvicorn.server import ServerState

from proxy.edge.guard import GuardProtocol
from proxy.store.memory import MemoryStore
from proxy.wire.frames import Chunk, End, Head, Output

EVENT = b'data: {"choices": []}\n\n'
# Methods of the store that only look into the memory of the process.
HINTS = {"queued", "all_queued", "next_sequence", "is_unfinished", "ahead"}


@dataclass
class Scene:
    """A proxy with a worker, and a connection in memory."""

    proxy: Proxy
    store: RecordedStore
    worker: Puppet
    protocol: GuardProtocol
    transport: MemoryTransport

    def calls(self) -> list[str]:
        """Return the names of the store calls that may have to wait for a disk."""
        names = [call.partition("(")[0] for call in self.store.calls]
        return [name for name in names if name not in HINTS]

    async def answered(self, end: bytes = b"}") -> bytes:
        """Wait for an answer that ends like this."""
        await until(lambda: self.transport.written.endswith(end), what="the answer")
        return bytes(self.transport.written)


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    calls, store = recorded(MemoryStore())
    with socket.socket() as unconnected:
        async with serving(job_store=store) as proxy, puppet(proxy, slots=9) as worker:
            await until(lambda: proxy.ready == 1)
            config = configuration(proxy.parts.edge, proxy.parts.app)
            protocol, transport = connect(config, ServerState(), unconnected)
            calls.calls.clear()
            yield Scene(proxy, calls, worker, protocol, transport)
            protocol.connection_lost(None)


async def test_a_call_in_the_fast_lane(scene: Scene) -> None:
    with counted_tasks() as tasks:
        scene.protocol.data_received(json_request(chat("x"), CHAT))
        [worker] = scene.proxy.parts.fleet
        assert worker.held == 1, "the job is handed out in the same turn of the event loop"
        job = await scene.worker.job()
        await scene.worker.say(*whole(job))
        await scene.answered()
    assert scene.transport.writes == 1
    assert tasks == {}
    assert scene.calls() == []


async def test_a_stream_in_the_fast_lane(scene: Scene) -> None:
    """Pieces that arrive together are written together."""
    with counted_tasks() as tasks:
        scene.protocol.data_received(json_request(chat("x", stream=True), CHAT))
        job = await scene.worker.job()
        head = Head(job.job, job.attempt, 200, "text/event-stream")
        chunk = Chunk(job.job, job.attempt, EVENT)
        await scene.worker.say(head, chunk, chunk, chunk)
        await scene.answered(EVENT + b"\r\n")
        assert scene.transport.writes == 1
        await scene.worker.say(chunk, chunk, End(job.job, job.attempt, "completed"))
        await scene.answered(b"0\r\n\r\n")
    assert scene.transport.writes == 2
    assert tasks == {}
    assert scene.calls() == []


async def test_a_call_in_the_application(scene: Scene) -> None:
    with counted_tasks() as tasks:
        scene.protocol.data_received(json_request(chat("x"), CHAT, x_unknown="1"))
        job = await scene.worker.job()
        await scene.worker.say(*whole(job))
        await scene.answered()
    assert scene.transport.writes == 2, "the head and the body"
    assert tasks == {"RequestResponseCycle.run_asgi": 1, "_watch": 1}
    assert scene.calls() == []


async def test_a_durable_job(scene: Scene) -> None:
    with counted_tasks() as tasks:
        scene.protocol.data_received(json_request({"input": 1}, "/v2/default/run"))
        answer = await scene.answered()
        assert scene.calls()[:1] == ["submit"]
        assert scene.transport.writes == 2
        assert tasks["RequestResponseCycle.run_asgi"] == 1
        job = await scene.worker.job()
        await scene.worker.say(
            Output(job.job, job.attempt, b"1"), End(job.job, job.attempt, "completed")
        )
        await until(lambda: "settle" in scene.calls(), what="the job ends")
    assert scene.calls() == ["submit", "take", "append", "settle"]
    found = re.search(rb'"id":"([^"]+)"', answer)
    assert found is not None
    scene.store.calls.clear()
    scene.transport.written.clear()
    with counted_tasks() as tasks:
        scene.protocol.data_received(
            json_request(b"", f"/v2/default/status/{found[1].decode()}", method="GET")
        )
        await scene.answered()
    assert scene.calls() == ["result"]
    assert tasks == {"RequestResponseCycle.run_asgi": 1}
