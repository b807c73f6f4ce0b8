"""The results of stock workers, given to the sinks of their runs."""

import asyncio
import json

import pytest
from harness.data.jobs import ALICE, HERE, REQUEST
from msgspec.structs import replace

from proxy.app import Parts
from proxy.channel.runpod.results import RunpodResults
from proxy.channel.runpod.tracking import OnClosed
from proxy.channel.runpod.worker import RunpodWorker
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Head
from proxy.service.mailbox import Mailbox

EVENTS = Head(200, "text/event-stream; charset=utf-8")


class Line:
    """A connection that does not end."""

    def watch(self, on_closed: OnClosed) -> None:
        pass


class Scene:
    """A stock worker that runs the streaming call of a client."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.results = RunpodResults(parts.fleet, parts.recorder, parts.registry, parts.passing)
        self.worker: RunpodWorker = parts.registry.admit(HERE, "w")
        poll = self.worker.on_poll(1, is_idle=False)
        [endpoint] = parts.endpoints
        work = replace(REQUEST, body=b'{"stream": true}')
        self.mailbox: Mailbox = parts.interactive.call(
            endpoint, ALICE, work, light=False, queue_timeout=None
        )
        parts.dispatch._hand_out(HERE, light=False)
        self.worker.poll_answered(self.worker.close_poll(poll))

    async def put(self, events: str) -> bytes:
        """Post output of the run; return what its client receives meanwhile."""
        posting = asyncio.create_task(
            self.results.chunk(
                self.worker, self.mailbox.job.id, json.dumps(events).encode(), Line()
            )
        )
        received = b""
        is_done = False
        while not is_done:
            is_done = posting.done()
            while data := self.mailbox.consume():
                received += data
            await asyncio.wait({posting}, timeout=0.01)
        return received


@pytest.fixture
async def scene(parts: Parts) -> Scene:
    return Scene(parts)


async def test_a_stream_begins_with_a_head(scene: Scene) -> None:
    assert await scene.put("data: 1\n\n") == b"data: 1\n\n"
    assert scene.mailbox.response_head == EVENTS
    large = f"data: {'x' * 400_000}\n\n"
    assert await scene.put(large) == large.encode()
    assert scene.mailbox.job.status is Status.IN_PROGRESS


async def test_output_of_a_worker_that_is_lost_meanwhile_does_not_reach_the_client(
    scene: Scene,
) -> None:
    """A large element is read in a thread; the job can be back in the queue after that."""
    putting = asyncio.create_task(scene.put(f"data: {'x' * 400_000}\n\n"))
    # Until the element is being read.
    for _ in range(3):
        await asyncio.sleep(0)
    scene.parts.fleet.remove(scene.worker.member, "its process ended")
    assert len(await putting) == 0
    assert scene.mailbox.response_head is None
    assert scene.mailbox.job.status is Status.IN_QUEUE
