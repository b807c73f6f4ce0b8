"""Dispatch of posted output and results to the mailbox of a call or the recording of a job."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import structlog

from proxy.access.body_budget import Budget, BudgetError
from proxy.channel.runpod.openai import (
    BLANK_LINES,
    EVENTS,
    JSON,
    SICK,
    Answer,
    Failure,
    Result,
    TooManyElementsError,
    error_text,
    find_failure,
)
from proxy.channel.runpod.registry import WorkerRegistry
from proxy.channel.runpod.tracking import Run
from proxy.channel.runpod.worker import RunpodWorker
from proxy.jobs.model import JobError, JobId
from proxy.service.background import insist
from proxy.service.endings import OVERFLOW, WORKER_LOST, RunEndings
from proxy.service.json_text import in_thread_if_large
from proxy.service.mailbox import (
    FIRST_ERROR_STATUS,
    STALL_SECONDS,
    STREAM_MAX_BYTES,
    Head,
    Mailbox,
    Mailboxes,
)
from proxy.service.recorder import OUTPUT_MAX_BYTES, Recorder
from proxy.wire.frames import PART_BYTES

log = structlog.get_logger()

ENGINE_ERROR = "engine_error"
PROGRESS_BYTES = 1024 * 1024
NOTHING = JobError(ENGINE_ERROR, "The worker finished without a response.")
NO_JSON = JobError(ENGINE_ERROR, "The worker's result is not valid JSON.")
ERROR_EVENT = JobError("error_event", "the stream carries an error event")
HOLES = JobError(
    WORKER_LOST.code, "Part of the response was lost between the worker and the proxy."
)


class RunpodResults:
    """Processes posted output and results.

    The first result of a run counts; later and late results are ignored.
    """

    def __init__(
        self,
        runs: RunEndings,
        output: Mailboxes,
        recorder: Recorder,
        registry: WorkerRegistry,
        passing: Budget,
    ) -> None:
        self._runs = runs
        self._output = output
        self._recorder = recorder
        self._registry = registry
        self._passing = passing  # the bytes of large events that wait for their clients

    async def chunk(self, worker: RunpodWorker, job_id: JobId, element: bytes) -> None:
        """Process an output element; return when the next one may be sent."""
        run = self._run(worker, job_id)
        if run is None or run.is_ending or run.is_stopped:
            return
        run.has_arrived = True
        if not await self._put(job_id, run, element):
            await self._runs.overflowed(worker.member, job_id, run.attempt)
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL_SECONDS):
                await run.flow.wait()

    def progress(self, worker: RunpodWorker, job_id: JobId, value: bytes) -> None:
        """Record a progress report of the job."""
        run = worker.tracked.runs.get(job_id)
        if run is not None and not run.is_ending and len(value) <= PROGRESS_BYTES:
            self._recorder.note(job_id, run.attempt, value)

    async def result(self, worker: RunpodWorker, job_id: JobId, result: Result | None) -> None:
        """End a run with its result, or with an error if the result was invalid (None).

        Returns when the result is in the store.
        """
        run = self._run(worker, job_id)
        if run is None or run.is_ending:
            log.debug("stock.late", job=job_id, worker=worker.id)
            return
        run.is_ending = True
        try:
            await self._end(worker, job_id, run, result)
        finally:
            run.is_ending = False  # after an internal error, the SDK posts the result again
        if worker.tracked.runs.get(job_id) is run:
            del worker.tracked.runs[job_id]
        if result is not None and result.refreshes:
            worker.refreshes()

    async def too_large(self, worker: RunpodWorker, job_id: JobId) -> None:
        """End a run whose posted body exceeds the size limit."""
        run = worker.tracked.runs.pop(job_id, None)
        if run is not None:
            await self._runs.overflowed(worker.member, job_id, run.attempt)
            await self._runs.released(worker.member, job_id, run.attempt)

    def _run(self, worker: RunpodWorker, job_id: JobId) -> Run | None:
        return worker.tracked.runs.get(job_id) or self._registry.adopt(worker, job_id)

    async def _put(self, job_id: JobId, run: Run, element: bytes) -> bool:
        if run.answer is None:
            return await self._recorder.put(
                job_id, run.attempt, element, b"", whole=False, more=False
            )
        mailbox = self._mailbox(job_id, run)
        if mailbox is None:
            return True
        if run.answer.unread:
            await in_thread_if_large(run.answer.read, run.answer.unread)
        try:
            events = await in_thread_if_large(run.answer.put, element)
        except TooManyElementsError:
            return False
        return run.answer.backlog <= OUTPUT_MAX_BYTES and await self._pass(
            mailbox, run, run.answer, events
        )

    async def _pass(self, mailbox: Mailbox, run: Run, answer: Answer, events: bytes) -> bool:
        """Put events into the mailbox.

        If the mailbox is full, this waits for the client, which also delays the worker's request.
        Returns False if the events exceed the buffer of a client that stopped reading.
        """
        pieces = _pieces(events, more=answer.is_mid_event) if events else iter(())
        with self._passing.share() as share:
            try:
                if len(events) > STREAM_MAX_BYTES:
                    share.grow(2 * len(events))  # the events and the posted body
                async with asyncio.timeout(STALL_SECONDS):
                    for piece, more in pieces:
                        if self._mailbox(mailbox.job_id, run) is not mailbox or run.is_stopped:
                            return True  # the run is over
                        if mailbox.head is None:
                            mailbox.put_head(Head(200, EVENTS))
                        if not mailbox.put_chunk(piece, more=more):
                            return False
                        if mailbox.backlog > STREAM_MAX_BYTES // 2:
                            await run.flow.wait()
            except BudgetError:
                return False
            except TimeoutError:
                pass
        return all(mailbox.put_chunk(piece, more=more) for piece, more in pieces)

    async def _end(
        self, worker: RunpodWorker, job_id: JobId, run: Run, result: Result | None
    ) -> None:
        if result is None:
            await insist(partial(self._runs.refused, worker.member, job_id, run.attempt, NO_JSON))
        elif result.has_failed and SICK in error_text(bytes(result.error)):
            await self._registry.fell_ill(worker.endpoint, worker.id, SICK, shun=True)
        elif run.answer is not None:
            await self._end_call(worker, job_id, run, run.answer, result)
        elif result.has_failed:
            if bytes(result.output):
                await self._recorder.put(
                    job_id, run.attempt, result.value, b"", whole=True, more=False
                )
            error = JobError(ENGINE_ERROR, error_text(bytes(result.error)))
            await insist(partial(self._runs.failed, worker.member, job_id, run.attempt, error))
        else:
            await insist(
                partial(self._runs.completed, worker.member, job_id, run.attempt, result.value)
            )

    async def _end_call(
        self, worker: RunpodWorker, job_id: JobId, run: Run, answer: Answer, result: Result
    ) -> None:
        try:
            await self._answer(worker, job_id, run, answer, result)
        except TooManyElementsError:
            await insist(partial(self._runs.refused, worker.member, job_id, run.attempt, OVERFLOW))

    async def _answer(
        self, worker: RunpodWorker, job_id: JobId, run: Run, answer: Answer, result: Result
    ) -> None:
        member, attempt, value = worker.member, run.attempt, result.value
        if answer.unread:
            await in_thread_if_large(answer.read, answer.unread)
        mailbox = self._mailbox(job_id, run)
        if mailbox is None:  # the client has disconnected
            await self._runs.released(member, job_id, attempt)
        elif result.has_failed:
            await self._fail(worker, mailbox, run, find_failure(bytes(result.error)))
        elif await in_thread_if_large(answer.has_holes, value):
            await insist(partial(self._runs.refused, member, job_id, attempt, HOLES))
        elif answer.is_stream:
            fits = await self._pass(
                mailbox, run, answer, await in_thread_if_large(answer.finish, value)
            )
            if answer.failure is not None:
                await self._fail(worker, mailbox, run, answer.failure)
            elif not answer.has_begun:
                await insist(partial(self._runs.refused, member, job_id, attempt, NOTHING))
            elif answer.carries_error and fits:
                await insist(partial(self._runs.failed, member, job_id, attempt, ERROR_EVENT))
            else:
                await self._complete(worker, job_id, run, fits=fits)
        elif (found := await in_thread_if_large(answer.whole, value)) is None:
            await insist(partial(self._runs.refused, member, job_id, attempt, NOTHING))
        elif found[0].status >= FIRST_ERROR_STATUS:
            await self._fail(worker, mailbox, run, Failure("", found[0].status, found[1]))
        else:
            mailbox.put_head(found[0])
            await self._complete(worker, job_id, run, fits=mailbox.put_chunk(found[1], more=False))

    async def _complete(self, worker: RunpodWorker, job_id: JobId, run: Run, *, fits: bool) -> None:
        if not fits:
            await self._runs.overflowed(worker.member, job_id, run.attempt)
        await insist(partial(self._runs.completed, worker.member, job_id, run.attempt))

    async def _fail(
        self, worker: RunpodWorker, mailbox: Mailbox, run: Run, failure: Failure
    ) -> None:
        """Fail a call.

        The engine's HTTP status is used if it is known and the response has not started.
        """
        error = JobError(ENGINE_ERROR, failure.message)
        if failure.status and mailbox.head is None:
            mailbox.put_head(Head(failure.status, JSON))
            mailbox.put_chunk(failure.body, more=False)
            await insist(
                partial(self._runs.failed, worker.member, mailbox.job_id, run.attempt, error)
            )
        else:
            await insist(
                partial(self._runs.refused, worker.member, mailbox.job_id, run.attempt, error)
            )

    def _mailbox(self, job_id: JobId, run: Run) -> Mailbox | None:
        mailbox = self._output.sink(job_id, run.attempt)
        return mailbox if mailbox is not None and mailbox.outcome is None else None


def _pieces(events: bytes, *, more: bool) -> Iterator[tuple[bytes, bool]]:
    """Split events into parts of at most `PART_BYTES`, between two events where possible.

    Yields each part with True if its last event continues in the next part.
    """
    start = 0
    while len(events) - start > PART_BYTES:
        end = start + PART_BYTES
        found = [
            at + len(mark) for mark in BLANK_LINES if (at := events.rfind(mark, start, end)) >= 0
        ]
        yield events[start : max(found, default=end)], not found
        start = max(found, default=end)
    yield events[start:], more
