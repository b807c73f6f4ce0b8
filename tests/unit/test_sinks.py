"""The contract of `Sink`, checked for both kinds: the mailbox and the recording of a job."""

from collections.abc import Callable
from typing import Any

import pytest
import pytest_asyncio
from harness.data.clock import FakeClock
from harness.data.jobs import ALICE, HERE, REQUEST, submission
from harness.worker.port import Port

from proxy.app import Parts
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Head, Input, JobError, JobId, WorkerId
from proxy.jobs.policy import Ending, RunEnd
from proxy.service.mailbox import Mailbox
from proxy.service.ports import Sink, SinkVerdict
from proxy.service.recorder import Recording
from proxy.service.worker import Worker

WORKER = WorkerId("w")
STREAM = Head(200, "text/event-stream")
WHY = JobError("because", "Because.")
# The consequence of `FULL` depends on other workers: see `tests/stories/test_full_engines.py`.
ENDS = [RunEnd(ending, WHY) for ending in Ending if ending is not Ending.FULL]
STATUSES = {
    Ending.COMPLETED: Status.COMPLETED,
    Ending.FAILED: Status.FAILED,
    Ending.REFUSED: Status.FAILED,
    Ending.RELEASED: Status.IN_QUEUE,
    Ending.LOST: Status.IN_QUEUE,
}
CALLS: dict[str, Callable[[Sink, int], Any]] = {
    "begin": lambda sink, attempt: sink.begin(attempt, Port()),
    "reattach": lambda sink, attempt: sink.reattach(attempt, Port()),
    "head": lambda sink, attempt: sink.head(attempt, Head(404, "text/plain")),
    "chunk": lambda sink, attempt: sink.chunk(attempt, b"late", more=False),
    "part of a chunk": lambda sink, attempt: sink.chunk(attempt, b"late", more=True),
    "output": lambda sink, attempt: sink.output(attempt, b'"late"', b"{}", whole=False),
    "whole output": lambda sink, attempt: sink.output(attempt, b'"late"', b"", whole=True),
    "drop": lambda sink, attempt: sink.drop(attempt),
} | {
    f"end {end.ending.name}": lambda sink, attempt, end=end: sink.end(attempt, end) for end in ENDS
}
"""Each method, with arguments that would change something."""


def verdict(name: str) -> SinkVerdict | None:
    """Return the result of a call that changes nothing."""
    return None if name.startswith(("begin", "drop", "end")) else SinkVerdict.IGNORED


class Run:
    """A run with some output, held by a worker: its job, its sink, and everything around it."""

    def __init__(self, parts: Parts, sink: Mailbox | Recording, job_id: JobId) -> None:
        self.parts = parts
        self.sink = sink
        self.job_id = job_id
        self.port = Port()
        self.worker = Worker(WORKER, HERE, self.port, seen=0.0, slots=1)
        parts.fleet.add(self.worker)

    async def call(self, name: str, attempt: int = 1) -> Any:
        """Call a method of the sink, and wait until its consequences are in the store."""
        result = CALLS[name](self.sink, attempt)
        if result is None or isinstance(result, SinkVerdict):
            return result
        await result
        return None

    async def end(self, end: RunEnd) -> None:
        if (writing := self.sink.end(1, end)) is not None:
            await writing

    async def cancel(self) -> None:
        """Cancel the job, as its client does."""
        [endpoint] = self.parts.endpoints
        if isinstance(self.sink, Mailbox):
            self.parts.interactive.cancel(HERE, ALICE, self.job_id)
        else:
            await self.parts.durable.cancel(endpoint, ALICE, self.job_id)

    async def state(self) -> dict[str, Any]:
        """Return all that a call can change."""
        [endpoint] = self.parts.endpoints
        job = await self.parts.view.get(endpoint, ALICE, self.job_id)
        assert job is not None
        state: dict[str, Any] = {
            "job": job,
            "counts": await self.parts.view.counts(HERE),
            "messages": list(self.port.messages),
            "recordings": len(self.parts.recorder),
        }
        if isinstance(self.sink, Mailbox):
            return state | {
                "head": self.sink.response_head,
                "chunks": list(self.sink._chunks),
                "backlog": self.sink.backlog,
                "outcome": self.sink.outcome,
            }
        return state | {
            "waiting": list(self.sink.waiting),
            "whole": self.sink.whole,
            "output": await self.parts.store.read(job.id, 0, 99),
        }

    async def status(self) -> Status:
        return (await self.state())["job"].status


@pytest_asyncio.fixture(params=["mailbox", "recording"])
async def run(request: pytest.FixtureRequest, parts: Parts, clock: FakeClock) -> Run:
    """Return the first run of a job, which has begun and has some output."""
    if request.param == "mailbox":
        [endpoint] = parts.endpoints
        mailbox = parts.interactive.call(endpoint, ALICE, REQUEST, light=False, queue_timeout=None)
        parts.interactive.take(HERE, WORKER, 1, light=False)
        made = Run(parts, mailbox, mailbox.job.id)
        made.worker.hold(mailbox.job, mailbox, since=0.0)
    else:
        await parts.store.submit(submission("job", work=Input(b"1")), clock.now())
        [job] = await parts.runs.take(HERE, WORKER, 1, light=False, run=1)
        made = Run(parts, parts.runs.record(job), job.id)
        made.worker.hold(job, made.sink, since=0.0)
    made.sink.begin(1, made.port)
    made.sink.head(1, STREAM)
    made.sink.chunk(1, b"data: 1\n\n", more=False)
    made.sink.output(1, b"1", b"", whole=False)
    return made


def test_a_sink_takes_the_output_of_its_kind_of_job(run: Run) -> None:
    is_mailbox = isinstance(run.sink, Mailbox)
    assert run.sink.takes_values is not is_mailbox
    output = SinkVerdict.IGNORED if is_mailbox else SinkVerdict.ACCEPTED
    body = SinkVerdict.ACCEPTED if is_mailbox else SinkVerdict.IGNORED
    assert run.sink.head(1, STREAM) is (SinkVerdict.REPEATED if is_mailbox else SinkVerdict.IGNORED)
    assert run.sink.chunk(1, b"data: 2\n\n", more=False) is body
    assert run.sink.output(1, b"2", b"", whole=False) is output
    assert run.sink.output(1, b"3", b"", whole=True) is output


@pytest.mark.parametrize("attempt", [0, 2])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_for_another_attempt_changes_nothing(
    run: Run, name: str, attempt: int
) -> None:
    before = await run.state()
    assert await run.call(name, attempt) is verdict(name)
    assert await run.state() == before
    assert before["job"].status is Status.IN_PROGRESS


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.ending.name)
async def test_the_end_of_a_run_decides_the_status_of_its_job(run: Run, end: RunEnd) -> None:
    await run.end(end)
    assert await run.status() is STATUSES[end.ending]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.ending.name)
async def test_a_call_after_the_end_changes_nothing(run: Run, end: RunEnd, name: str) -> None:
    """Another end does not either: the first one counts."""
    await run.end(end)
    before = await run.state()
    assert await run.call(name) is verdict(name)
    assert await run.state() == before


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_after_the_job_was_cancelled_changes_nothing(run: Run, name: str) -> None:
    await run.cancel()
    before = await run.state()
    assert before["job"].status is Status.CANCELLED
    assert before["recordings"] == 0
    assert await run.call(name) is verdict(name)
    assert await run.state() == before


async def test_a_run_continues_over_another_connection(run: Run) -> None:
    later = Port()
    assert run.sink.reattach(1, later) is SinkVerdict.ACCEPTED
    large = b'"' + b"x" * 300_000 + b'"'
    run.sink.chunk(1, large, more=False)
    run.sink.output(1, large, b"", whole=False)
    assert run.port.messages == []
    assert later.messages == [("pause", run.job_id, 1)]


async def test_a_run_of_a_cancelled_job_is_not_resumed(run: Run) -> None:
    large = b'"' + b"x" * 300_000 + b'"'
    run.sink.chunk(1, large, more=False)
    run.sink.output(1, large, b"", whole=False)
    await run.cancel()
    stopped = list(run.port.messages)
    assert stopped[0] == ("pause", run.job_id, 1)
    assert stopped[-1] == ("stop", run.job_id, 1)
    if isinstance(run.sink, Mailbox):
        run.sink.consume()
    await run.parts.recorder.flush_all()
    assert run.port.messages == stopped
