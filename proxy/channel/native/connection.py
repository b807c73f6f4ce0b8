"""One worker's connection: what it is told, and what it says, frame by frame."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog

from proxy.channel.native.validation import JOB_CHARACTERS, head_fault, worker_error
from proxy.jobs.model import Input, Job, JobError, JobId, Request
from proxy.service.background import Background, insist
from proxy.service.endings import WORKER_LOST, RunEndings
from proxy.service.fleet import UNSENT_MAX_BYTES, Worker
from proxy.service.mailbox import Head, Mailboxes
from proxy.service.recorder import InvalidOutputError, Recorder
from proxy.wire import frames
from proxy.wire.outbox import Outbox

log = structlog.get_logger()

ENGINE_ERROR = "engine_error"
NO_HEAD = JobError(ENGINE_ERROR, "The answer of the engine came without its beginning.")
NO_JSON = JobError(ENGINE_ERROR, "The output is no JSON that could be passed on.")


class Connection:
    """`WorkerPort` over one WebSocket, and the reader of what comes from the worker."""

    def __init__(
        self, send: Callable[[dict[str, Any]], Awaitable[None]], on_room: Callable[[], None]
    ) -> None:
        self._send, self._on_room = send, on_room
        self._outbox = Outbox()
        self._filled = asyncio.Event()
        self._closing: str | None = None

    @property
    def backlog(self) -> int:
        return self._outbox.size

    def offer(self, job: Job) -> None:
        work = job.submission.work
        request = work if isinstance(work, Request) else Request("", "", "", work.body)
        self._outbox.put_in_lane(
            frames.Job(
                job=job.id,
                attempt=job.attempt,
                method=request.method,
                path=request.path,
                content_type=request.content_type,
                size=len(request.body),
                light=job.submission.light,
                input=isinstance(work, Input),
            )
        )
        self._outbox.put_in_lane(frames.Body(job.id, job.attempt, request.body))
        self._filled.set()

    def stop(self, job_id: JobId, attempt: int) -> None:
        self._outbox.drop(
            job_id
        )  # what is left of its body is not needed; the worker takes a stop in its place
        self._put(frames.Stop(job_id, attempt))

    def pause(self, job_id: JobId, attempt: int) -> None:
        self._put(frames.Pause(job_id, attempt))

    def resume(self, job_id: JobId, attempt: int) -> None:
        self._put(frames.Resume(job_id, attempt))

    def close(self, reason: str) -> None:
        self._closing = reason
        self._filled.set()

    def _put(self, frame: frames.Frame) -> None:
        self._outbox.put(frame)
        self._filled.set()

    async def write(self) -> None:
        """Write what is put in, everything of one turn of the event loop in one message, until closed."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            before = self._outbox.size
            while (message := self._outbox.next_message()) is not None:
                await self._send({"type": "websocket.send", "bytes": message[0]})
                if before >= UNSENT_MAX_BYTES > self._outbox.size:
                    self._on_room()
                before = self._outbox.size
            if self._closing is not None:
                await self._send(
                    {"type": "websocket.close", "code": 1012, "reason": self._closing[:120]}
                )
                return


class Reader:
    """Carries a worker's job frames to where they belong. What the worker does not hold, it cannot speak about."""

    def __init__(
        self,
        worker: Worker,
        runs: RunEndings,
        output: Mailboxes,
        recorder: Recorder,
        background: Background,
    ) -> None:
        self._worker, self._runs, self._output, self._recorder = worker, runs, output, recorder
        self._background = background

    async def take(self, frame: frames.Head | frames.Chunk | frames.Output | frames.End) -> None:
        """One frame of one run. A stale one, or one of a run it was never given, is ignored."""
        worker, job_id, attempt = self._worker, JobId(frame.job), frame.attempt
        hold = worker.holds.get(job_id)
        if hold is None or hold.attempt != attempt or hold.has_ended:
            log.debug("frame.stale", job=job_id[:JOB_CHARACTERS], attempt=attempt, worker=worker.id)
            worker.ignored += 1
            return
        hold.received += 1
        match frame:
            case frames.Chunk():
                await self._chunk(frame)
            case frames.Head():
                await self._head(frame)
            case frames.Output():
                await self._output_of_job(frame)
            case frames.End() if (
                hold.durable
            ):  # the disk must not hold up the other jobs of this worker
                hold.has_ended = True
                self._background.start(insist(partial(self._end, frame)), f"end {job_id}")
            case frames.End():
                await self._end(frame)

    async def _chunk(self, frame: frames.Chunk) -> None:
        job_id, attempt = JobId(frame.job), frame.attempt
        mailbox = self._output.sink(job_id, attempt)
        if mailbox is None or mailbox.outcome is not None:
            return  # its client has left, or was told
        if mailbox.head is None:
            await self._runs.cut(self._worker, job_id, attempt, NO_HEAD)
        elif not mailbox.put_chunk(frame.data, more=frame.more):
            await self._runs.overflowed(self._worker, job_id, attempt)

    async def _head(self, frame: frames.Head) -> None:
        job_id, attempt = JobId(frame.job), frame.attempt
        mailbox = self._output.sink(job_id, attempt)
        if mailbox is None or mailbox.outcome is not None:
            return
        if mailbox.head is not None:  # an answer has one beginning
            self._worker.ignored += 1
        elif fault := head_fault(frame):
            await self._runs.cut(self._worker, job_id, attempt, JobError(ENGINE_ERROR, fault))
        else:
            mailbox.put_head(Head(frame.status, frame.content_type))

    async def _output_of_job(self, frame: frames.Output) -> None:
        job_id, attempt, data, metrics = JobId(frame.job), frame.attempt, frame.data, frame.metrics
        try:
            fits = await self._recorder.put(
                job_id, attempt, data, metrics, whole=frame.whole, more=frame.more
            )
        except InvalidOutputError:
            await self._runs.cut(self._worker, job_id, attempt, NO_JSON)
        else:
            if not fits:
                await self._runs.overflowed(self._worker, job_id, attempt)

    async def _end(self, frame: frames.End) -> None:
        worker, job_id, attempt = self._worker, JobId(frame.job), frame.attempt
        match frame.ending:
            case "completed":
                await self._runs.completed(worker, job_id, attempt)
            case "failed":
                await self._runs.failed(
                    worker, job_id, attempt, worker_error(frame, ENGINE_ERROR, "")
                )
            case "lost":
                why = worker_error(frame, WORKER_LOST.code, WORKER_LOST.message)
                await self._runs.lost(worker, job_id, attempt, why)
            case "released":
                await self._runs.released(worker, job_id, attempt)
