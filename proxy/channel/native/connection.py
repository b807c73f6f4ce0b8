"""The connection of one worker: the frames sent to it, and the frames received from it."""

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
NO_HEAD = JobError(ENGINE_ERROR, "The engine sent a response body without a response head.")
NO_JSON = JobError(ENGINE_ERROR, "The output is not valid JSON.")


class Connection:
    """`WorkerPort` over one WebSocket: queues the frames for the worker and writes them."""

    def __init__(
        self, send: Callable[[dict[str, Any]], Awaitable[None]], on_room: Callable[[], None]
    ) -> None:
        self._send = send
        self._on_room = on_room
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
        # The rest of the body is not needed: the worker accepts a stop in its place.
        self._outbox.drop(job_id)
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
        """Write the queued frames until the connection is closed.

        All frames of one turn of the event loop go into one message.
        """
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
    """Dispatches the job frames of a worker to the mailbox or the recording of their run.

    Frames for runs that the worker does not hold are ignored.
    """

    def __init__(
        self,
        worker: Worker,
        runs: RunEndings,
        output: Mailboxes,
        recorder: Recorder,
        background: Background,
    ) -> None:
        self._worker = worker
        self._runs = runs
        self._output = output
        self._recorder = recorder
        self._background = background

    async def take(self, frame: frames.Head | frames.Chunk | frames.Output | frames.End) -> None:
        """Process one frame of one run. Stale frames and frames of unassigned runs are ignored."""
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
            case frames.End() if hold.durable:
                # Disk writes must not block the other jobs of this worker.
                hold.has_ended = True
                self._background.start(insist(partial(self._end, frame)), f"end {job_id}")
            case frames.End():
                await self._end(frame)

    async def _chunk(self, frame: frames.Chunk) -> None:
        job_id, attempt = JobId(frame.job), frame.attempt
        mailbox = self._output.sink(job_id, attempt)
        if mailbox is None or mailbox.outcome is not None:
            return  # the client has disconnected, or has already received its error
        if mailbox.head is None:
            await self._runs.cut(self._worker, job_id, attempt, NO_HEAD)
        elif not mailbox.put_chunk(frame.data, more=frame.more):
            await self._runs.overflowed(self._worker, job_id, attempt)

    async def _head(self, frame: frames.Head) -> None:
        job_id, attempt = JobId(frame.job), frame.attempt
        mailbox = self._output.sink(job_id, attempt)
        if mailbox is None or mailbox.outcome is not None:
            return
        if mailbox.head is not None:  # a response has one head
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
