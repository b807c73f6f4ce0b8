"""Memory for large output is reserved before the output is read from the store."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from harness.data.store_steps import STORES
from harness.proxy.queue_api import Answer, QueueClient
from harness.proxy.recorded_store import RecordedStore, recorded
from harness.proxy.server import Proxy, serving
from harness.tools.waiting import until
from harness.worker.puppet import puppet

from proxy.access.limits import Budget
from proxy.api.queue.sse import PAGE_MAX_BYTES
from proxy.service.job_view import UNRESERVED_MAX_BYTES
from proxy.wire.frames import End, Output

SIZE = UNRESERVED_MAX_BYTES + 100_000
TEXT = msgspec.json.encode("x" * SIZE)
EVENTS = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class Scene:
    """A streaming job with three large elements that has ended, and one with a large result."""

    proxy: Proxy
    queue: QueueClient
    store: RecordedStore
    streamed: str
    whole: str

    @property
    def answers(self) -> Budget:
        return self.proxy.parts.answers

    def limits_of_reads(self) -> set[int]:
        """Return the limits of bytes with which output was read from the store."""
        found = (re.search(r"'max_bytes': (\d+)", call) for call in self.store.calls)
        return {int(match[1]) for match in found if match is not None}


@pytest_asyncio.fixture(params=STORES)
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    store, given = recorded(STORES[request.param](tmp_path))
    async with serving(job_store=given) as proxy, puppet(proxy, slots=2) as worker:
        queue = QueueClient(proxy)
        streamed = await queue.run("stream")
        run = await worker.job()
        for _ in range(3):
            await worker.say(Output(run.job, run.attempt, TEXT))
        await worker.say(End(run.job, run.attempt, "completed"))
        whole = await queue.run("whole")
        run = await worker.job()
        await worker.say(Output(run.job, run.attempt, TEXT, whole=True))
        await worker.say(End(run.job, run.attempt, "completed"))
        for job in (streamed, whole):
            assert (await queue.end(job))["status"] == "COMPLETED"
        await until(lambda: proxy.parts.answers.used == 0, what="the answers are sent")
        store.calls.clear()
        yield Scene(proxy, queue, store, streamed, whole)


@pytest.mark.parametrize(
    "operation",
    [
        "status/{whole}",
        "status/{streamed}",
        "status-sync/{whole}",
        "stream/{streamed}",
        "stream/{streamed}?after=1-1",
    ],
)
async def test_output_is_not_read_without_memory_for_it(scene: Scene, operation: str) -> None:
    path = operation.format(whole=scene.whole, streamed=scene.streamed)
    with scene.answers.share() as others:
        others.grow(scene.answers.limit - SIZE)
        refused = await scene.queue.call("GET", path)
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert scene.limits_of_reads() == {UNRESERVED_MAX_BYTES}
        assert scene.answers.used == others.held
    answer = await scene.queue.call("GET", path)
    assert len(texts(answer)) == (2 if "after" in path else 3 if scene.streamed in path else 1)
    assert set(texts(answer)) == {SIZE}
    await until(lambda: scene.answers.used == 0, what="the answer is sent")


async def test_an_event_stream_waits_for_memory(scene: Scene) -> None:
    with scene.answers.share() as others:
        others.grow(scene.answers.limit - SIZE)
        async with scene.proxy.http.get(
            f"/v2/default/stream/{scene.streamed}", headers=EVENTS
        ) as events:
            await until(lambda: bool(scene.answers._waiting), what="the stream waits")
            assert scene.limits_of_reads() == {PAGE_MAX_BYTES}
            others.give_back()
            async with asyncio.timeout(10):
                text = await events.text()
    assert text.count("id: ") == 3
    assert 'data: {"status":"COMPLETED"}' in text
    assert scene.answers.used == 0


def texts(answer: Answer) -> list[int]:
    """Return the lengths of the texts in an answer, with the parts of an element joined."""
    assert answer.status == 200, answer
    if "stream" in answer.body:
        return [len(element["output"]) for element in answer["stream"]]
    output = answer["output"]
    return [len(text) for text in (output if isinstance(output, list) else [output])]
