"""Posted output and results, given to the sinks of their runs."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial

import structlog

from proxy.access.limits import Budget, BudgetError
from proxy.channel.runpod.comparison import Difference, digest, find_difference
from proxy.channel.runpod.openai import (
    ENGINE_ENDED_TEXT,
    EVENTS,
    JSON,
    Answer,
    Failure,
    Result,
    TooManyElementsError,
    error_text,
    find_failure,
)
from proxy.channel.runpod.prestart import Prestart, PrestartEvent, read_prestart
from proxy.channel.runpod.registry import WorkerRegistry
from proxy.channel.runpod.tracking import Run, WatchedConnection
from proxy.channel.runpod.worker import RunpodWorker
from proxy.jobs.model import FIRST_ERROR_STATUS, Head, JobError, JobId
from proxy.jobs.policy import ENGINE_ERROR, WORKER_LOST, Correction, Ending, RunEnd
from proxy.service.fleet import OVERFLOW, Fleet
from proxy.service.json_text import in_thread_if_large
from proxy.service.mailbox import STALL_SECONDS, STREAM_MAX_BYTES
from proxy.service.ports import Sink, SinkVerdict
from proxy.service.recorder import Recorder, element
from proxy.wire.frames import (
    FULL_STATUSES,
    OUTPUT_MAX_BYTES,
    PART_BYTES,
    QUOTA_CODE,
    RETRY_AFTER_SECONDS,
)
from proxy.wire.sse import last_end

log = structlog.get_logger()

PROGRESS_BYTES = 1024 * 1024
# Elements that are added in one turn of the event loop.
TURN_MAX_ELEMENTS = 1_000
NOTHING = JobError(ENGINE_ERROR, "The worker finished without a response.")
NO_JSON = JobError(ENGINE_ERROR, "The worker's result is not valid JSON.")
ERROR_EVENT = JobError("error_event", "the stream carries an error event")
HOLES = JobError(
    WORKER_LOST.code, "Part of the response was lost between the worker and the proxy."
)


class ResultNotWrittenError(Exception):
    """The end of a run could not be written. The SDK may post the result again."""

    def __init__(self) -> None:
        super().__init__("the result could not be stored; see the log of the proxy")


class RunpodResults:
    """Processes posted output and results.

    The first result of a run counts; later and late results are ignored.
    """

    def __init__(
        self, fleet: Fleet, recorder: Recorder, registry: WorkerRegistry, passing: Budget
    ) -> None:
        self._fleet = fleet
        self._recorder = recorder
        self._registry = registry
        # The bytes of large events that wait for their clients.
        self._passing = passing

    async def chunk(
        self, worker: RunpodWorker, job_id: JobId, element: bytes, connection: WatchedConnection
    ) -> None:
        """Process an output element; return when the next one may be sent.

        `connection`: the one to which the response will be written.
        """
        run = await self._run(worker, job_id)
        if run is None:
            return
        element_digest = await in_thread_if_large(digest, element)
        if run.is_ending or run.is_stopped:
            return
        run.has_arrived = True
        if run.posted.begin(connection, element_digest, asyncio.get_running_loop().time()):
            run.posted.add(element_digest)
            if not await self._put(worker, job_id, run, element):
                self._cut(worker, job_id, run)
        else:
            log.info("stock.repeated", job=job_id, worker=worker.id)
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL_SECONDS):
                await run.flow.wait()

    def progress(self, worker: RunpodWorker, job_id: JobId, value: bytes) -> None:
        """Record a progress report of the job."""
        run = worker.tracked.runs.get(job_id)
        if run is not None and not run.is_ending and len(value) <= PROGRESS_BYTES:
            self._recorder.note(job_id, run.attempt, value)

    async def result(
        self,
        worker: RunpodWorker,
        job_id: JobId,
        result: Result | None,
        *,
        is_stream: bool = False,
    ) -> None:
        """End a run with its result, or with an error if the result was invalid (None).

        `is_stream`: the handler is a generator. Returns when the result is in the store. Raises
        `ResultNotWrittenError`.
        """
        run = await self._run(worker, job_id)
        if run is not None and run.is_unwritten:
            raise ResultNotWrittenError
        if run is None or run.is_ending:
            log.debug("stock.late", job=job_id, worker=worker.id)
            return
        run.is_ending = True
        try:
            await self._end(worker, job_id, run, result, is_stream=is_stream)
        finally:
            run.is_ending = False  # after an internal error, the SDK posts the result again
        if worker.tracked.runs.get(job_id) is run:
            worker.tracked.end(job_id, asyncio.get_running_loop().time())
        if result is not None and result.refreshes:
            worker.on_refresh()

    def too_large(self, worker: RunpodWorker, job_id: JobId) -> None:
        """End a run whose posted body exceeds the size limit."""
        run = worker.tracked.runs.get(job_id)
        if run is not None:
            worker.tracked.end(job_id, asyncio.get_running_loop().time())
            end = RunEnd(Ending.REFUSED, OVERFLOW)
            self._fleet.end_run(worker.member, job_id, run.attempt, end)

    async def _run(self, worker: RunpodWorker, job_id: JobId) -> Run | None:
        run = worker.tracked.runs.get(job_id)
        return run or await self._registry.adopt(worker, job_id, waits=True)

    def _cut(self, worker: RunpodWorker, job_id: JobId, run: Run) -> None:
        end = RunEnd(Ending.REFUSED, OVERFLOW)
        self._fleet.cut_run(worker.member, job_id, run.attempt, end)

    async def _put(self, worker: RunpodWorker, job_id: JobId, run: Run, element: bytes) -> bool:
        """Give an element to the sink of its run; return False if it does not fit."""
        sink = _sink(worker, job_id, run)
        if sink is None:
            return True
        answer = run.answer
        if answer is None:
            taken = sink.output(run.attempt, element, b"", whole=False)
            return taken is not SinkVerdict.TOO_LARGE
        if answer.unread:
            await in_thread_if_large(answer.read, answer.unread)
        try:
            events = await in_thread_if_large(answer.put, element)
        except TooManyElementsError:
            return False
        return answer.backlog <= OUTPUT_MAX_BYTES and await self._pass(sink, run, answer, events)

    async def _pass(self, sink: Sink, run: Run, answer: Answer, events: bytes) -> bool:
        """Give events to the sink of a run.

        While its client does not keep up, this waits, which also delays the worker's request.
        Returns False if the events exceed the buffer of a client that stopped reading.
        """
        pieces = _pieces(events, more=answer.is_mid_event) if events else iter(())
        with self._passing.share() as share:
            try:
                if len(events) > STREAM_MAX_BYTES:
                    share.grow(2 * len(events))  # the events and the posted body
                async with asyncio.timeout(STALL_SECONDS):
                    for piece, more in pieces:
                        taken = _put_events(sink, run, piece, more=more)
                        if taken is not SinkVerdict.ACCEPTED or run.is_stopped:
                            return taken is not SinkVerdict.TOO_LARGE
                        await run.flow.wait()
            except BudgetError:
                return False
            except TimeoutError:
                pass
        return all(
            _put_events(sink, run, piece, more=more) is not SinkVerdict.TOO_LARGE
            for piece, more in pieces
        )

    async def _end(
        self,
        worker: RunpodWorker,
        job_id: JobId,
        run: Run,
        result: Result | None,
        *,
        is_stream: bool,
    ) -> None:
        if result is None:
            await self._end_run(worker, job_id, run, RunEnd(Ending.REFUSED, NO_JSON))
        elif result.has_failed and (prestart := read_prestart(bytes(result.error))):
            await self._end_prestart(worker, job_id, run, prestart)
        elif result.has_failed and ENGINE_ENDED_TEXT in error_text(bytes(result.error)):
            self._registry.report_unhealthy(
                worker.endpoint, worker.id, ENGINE_ENDED_TEXT, exclude=True
            )
        elif run.answer is not None:
            try:
                end = await self._answer(worker, job_id, run, run.answer, result)
            except TooManyElementsError:
                end = RunEnd(Ending.REFUSED, OVERFLOW)
            await self._end_run(worker, job_id, run, end)
        elif result.has_failed:
            error = JobError(ENGINE_ERROR, error_text(bytes(result.error)))
            output = result.value if bytes(result.output) else None
            await self._end_run(worker, job_id, run, RunEnd(Ending.FAILED, error, output))
        else:
            end = RunEnd(Ending.COMPLETED, output=result.value)
            # Without a generator, nothing but the result is posted.
            if is_stream or len(run.posted):
                find = partial(find_difference, run.posted)
                difference = await in_thread_if_large(find, result.value)
                sink = _sink(worker, job_id, run)
                if difference is not None and sink is not None:
                    log.warning("stock.differs", job=job_id, worker=worker.id)
                    end = await _corrected(sink, run, end, difference)
            await self._end_run(worker, job_id, run, end)

    async def _end_prestart(
        self, worker: RunpodWorker, job_id: JobId, run: Run, prestart: Prestart
    ) -> None:
        """End a run that its worker has not begun. First, the worker gets no further job."""
        if prestart.event is PrestartEvent.FAILED:
            if worker.tracked.forget_loss(job_id):
                # The SDK drops the response of its open poll, and then takes a job to post this.
                released = RunEnd(Ending.RELEASED)
                self._fleet.end_run(worker.member, job_id, run.attempt, released)
            self._registry.report_unhealthy(
                worker.endpoint, worker.id, prestart.reason, exclude=True
            )
        else:
            worker.on_refresh()
            await self._end_run(worker, job_id, run, RunEnd(Ending.RELEASED))

    async def _end_run(self, worker: RunpodWorker, job_id: JobId, run: Run, end: RunEnd) -> None:
        writing = self._fleet.end_run(worker.member, job_id, run.attempt, end)
        # The write goes on if the worker closes this connection.
        if writing is not None and not await asyncio.shield(writing):
            run.is_unwritten = True
            raise ResultNotWrittenError

    async def _answer(
        self, worker: RunpodWorker, job_id: JobId, run: Run, answer: Answer, result: Result
    ) -> RunEnd:
        """Give the rest of a call's answer to its sink; return the end of the run."""
        value = result.value
        if answer.unread:
            await in_thread_if_large(answer.read, answer.unread)
        sink = _sink(worker, job_id, run)
        if sink is None:  # the client has disconnected
            return RunEnd(Ending.RELEASED)
        if result.has_failed:
            return _failed(sink, run, find_failure(bytes(result.error)))
        if await in_thread_if_large(partial(_differs, answer, run), value):
            return RunEnd(Ending.REFUSED, HOLES)
        if not answer.is_stream:
            found = await in_thread_if_large(answer.whole, value)
            if found is None:
                return RunEnd(Ending.REFUSED, NOTHING)
            head, body = found
            if head.status >= FIRST_ERROR_STATUS:
                return _failed(sink, run, Failure("", head.status, body))
            sink.head(run.attempt, head)
            taken = sink.chunk(run.attempt, body, more=False)
            return _completed(fits=taken is not SinkVerdict.TOO_LARGE)
        events = await in_thread_if_large(answer.finish, value)
        fits = await self._pass(sink, run, answer, events)
        if answer.failure is not None:
            return _failed(sink, run, answer.failure)
        if not answer.has_begun:
            return RunEnd(Ending.REFUSED, NOTHING)
        if answer.carries_error and fits:
            return RunEnd(Ending.FAILED, ERROR_EVENT)
        return _completed(fits=fits)


def _differs(answer: Answer, run: Run, output: bytes) -> bool:
    """Return True if elements of a stream were lost or repeated."""
    if answer.has_holes(output):
        return True
    is_posted = answer.is_stream and len(run.posted) > 0
    return is_posted and find_difference(run.posted, output) is not None


def _sink(worker: RunpodWorker, job_id: JobId, run: Run) -> Sink | None:
    """Return the receiver of a run's output; None if the worker does not hold the run any longer,
    or has been asked to stop it.
    """
    hold = worker.member.holds.get(job_id)
    if hold is None or hold.attempt != run.attempt or hold.stopped is not None:
        return None
    return hold.sink


async def _corrected(sink: Sink, run: Run, end: RunEnd, difference: Difference) -> RunEnd:
    """Return the end of a run whose elements have not all arrived, or not once each."""
    if not difference.is_at_end:
        elements = await asyncio.to_thread(_elements, difference.missing)
        return end._replace(error=HOLES, correction=Correction(difference.start, elements))
    for number, value in enumerate(difference.missing, 1):
        if number % TURN_MAX_ELEMENTS == 0:
            await asyncio.sleep(0)
        taken = sink.output(run.attempt, value, b"", whole=False)
        if taken is SinkVerdict.TOO_LARGE:
            return RunEnd(Ending.REFUSED, OVERFLOW)
    return end


def _elements(values: Iterable[bytes]) -> list[bytes]:
    return [element(value, b"") for value in values]


def _put_events(sink: Sink, run: Run, events: bytes, *, more: bool) -> SinkVerdict:
    """Give events to a sink, after the head of their response if it is missing."""
    taken = sink.chunk(run.attempt, events, more=more)
    if taken is SinkVerdict.HEADLESS:
        sink.head(run.attempt, Head(200, EVENTS))
        taken = sink.chunk(run.attempt, events, more=more)
    return taken


def _failed(sink: Sink, run: Run, failure: Failure) -> RunEnd:
    """Return the end of a call that failed.

    The engine's HTTP status is used if it is known and the response has not started.
    """
    error = JobError(ENGINE_ERROR, failure.message)
    if (
        failure.status
        and sink.head(run.attempt, Head(failure.status, JSON)) is SinkVerdict.ACCEPTED
    ):
        sink.chunk(run.attempt, failure.body, more=False)
        if failure.status in FULL_STATUSES and QUOTA_CODE not in failure.body:
            return RunEnd(Ending.FULL, error, retry_after=RETRY_AFTER_SECONDS)
        return RunEnd(Ending.FAILED, error)
    return RunEnd(Ending.REFUSED, error)


def _completed(*, fits: bool) -> RunEnd:
    return RunEnd(Ending.COMPLETED) if fits else RunEnd(Ending.REFUSED, OVERFLOW)


def _pieces(events: bytes, *, more: bool) -> Iterator[tuple[bytes, bool]]:
    """Split events into parts of at most `PART_BYTES`, between two events where possible.

    Yields each part with True if its last event continues in the next part.
    """
    start = 0
    while len(events) - start > PART_BYTES:
        end = start + PART_BYTES
        blank = last_end(events, start, end)
        yield events[start : blank or end], not blank
        start = blank or end
    yield events[start:], more
