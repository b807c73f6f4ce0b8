"""The operator reads once why jobs wait, and again when the reason changes."""

import asyncio
from typing import Any

import pytest
from harness.data.clock import FakeClock
from harness.data.jobs import HERE
from harness.worker.port import Port
from structlog.testing import capture_logs

from proxy.jobs.model import EndpointId, Millis, WorkerId
from proxy.service.endpoints import Endpoint, Endpoints
from proxy.service.events import LocalSignal
from proxy.service.fleet import Fleet
from proxy.service.queue_watch import PAUSE_SECONDS, WAIT_MIN_SECONDS, QueueWatch
from proxy.service.worker import LoadingStage, Worker


class Queue:
    """A queue with a number of jobs."""

    def __init__(self) -> None:
        self.jobs = 0

    def queued(self, endpoint: EndpointId, *, light: bool) -> int:  # noqa: ARG002 - there is one
        return 0 if light else self.jobs


class Watched:
    """A watch over one endpoint, and its time."""

    def __init__(self) -> None:
        self.queue = Queue()
        self.fleet = Fleet(LocalSignal())
        self.clock = FakeClock()
        self.now = 0.0
        self.watch = QueueWatch(
            Endpoints([Endpoint(HERE)]), self.fleet, self.clock, (self.queue, Queue())
        )

    def look(self, seconds: float) -> list[Any]:
        """Look once a second for this time; return what was logged."""
        with capture_logs() as logs:
            for _ in range(int(seconds)):
                self.now += 1.0
                self.clock.pass_time(1.0)
                self.watch.look(self.now)
        return [entry["reason"] for entry in logs]

    def join(self, name: str = "w", stage: str = "") -> Worker:
        worker = Worker(WorkerId(name), HERE, Port(), seen=0.0)
        if stage:
            worker.stage = LoadingStage(stage, self.clock.now())
        self.fleet.add(worker)
        return worker


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_reason_is_logged_once(watched: Watched) -> None:
    watched.queue.jobs = 3
    assert watched.look(60) == ["No worker is connected."]


def test_a_short_wait_is_not_logged(watched: Watched) -> None:
    for _ in range(30):
        watched.queue.jobs = 1
        assert watched.look(WAIT_MIN_SECONDS - 1) == []
        watched.queue.jobs = 0
        assert watched.look(1) == []


def test_each_change_is_logged_but_not_its_seconds(watched: Watched) -> None:
    watched.queue.jobs = 1
    assert watched.look(30) == ["No worker is connected."]
    worker = watched.join(stage="loading the model")
    [line] = watched.look(60)
    assert line == (
        "1 worker connected, none of them ready yet: it is loading (loading the model, 1 s)."
    )
    worker.slots = 1
    worker.stage = None
    assert watched.look(30) == []
    worker.reserve(1, light=False)
    worker.slots = 0
    [line] = watched.look(30)
    assert line == "1 worker connected, none of them ready yet."


async def test_the_last_failure_of_a_worker_is_named(watched: Watched) -> None:
    until = asyncio.get_running_loop().time() + 60
    watched.fleet.unhealthy.report(WorkerId("w"), HERE, until, "no CUDA device")
    watched.queue.jobs = 1
    assert watched.look(30) == ["No worker is connected. Last failure: w: no CUDA device."]


def test_many_changes_are_limited(watched: Watched) -> None:
    watched.queue.jobs = 1
    lines = []
    worker = watched.join()
    for number in range(60):
        worker.stage = LoadingStage(f"stage {number}", Millis(0))
        lines += watched.look(1)
    assert len(lines) == 60 // PAUSE_SECONDS


def test_jobs_that_wait_again_are_logged_again(watched: Watched) -> None:
    watched.queue.jobs = 1
    assert len(watched.look(30)) == 1
    watched.queue.jobs = 0
    assert watched.look(5) == []
    watched.queue.jobs = 1
    assert len(watched.look(30)) == 1
