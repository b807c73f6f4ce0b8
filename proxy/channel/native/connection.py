"""The connection of one worker: the frames sent to it, and the frames received from it."""

import asyncio
import re
from asyncio import Task
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from proxy.channel.native.validation import JOB_CHARACTERS
from proxy.jobs.model import Head, Input, JobError, JobId, Request
from proxy.jobs.policy import ENGINE_ERROR, WORKER_LOST, Ending, RunEnd
from proxy.service.fleet import OVERFLOW, Fleet
from proxy.service.json_text import in_thread_if_large, is_value
from proxy.service.ports import OfferedJob, SinkVerdict, WorkerPort
from proxy.service.recorder import ELEMENT_OVERHEAD_BYTES
from proxy.service.worker import UNSENT_MAX_BYTES, Hold, Worker
from proxy.wire import frames
from proxy.wire.fields import for_client
from proxy.wire.flow import Outbox

log = structlog.get_logger()

NO_HEAD = JobError(ENGINE_ERROR, "The engine sent a response body without a response head.")
NO_JSON = JobError(ENGINE_ERROR, "The output is not valid JSON.")

# The maximum length of an error message. An engine's own message may quote the request.
MESSAGE_CHARACTERS = 64 * 1024
# The metrics of one output value; those of our own worker have about 200 bytes.
METRICS_MAX_BYTES = 64 * 1024
# A status below 200 is informational and not a final response.
FIRST_STATUS, LAST_STATUS = 200, 599

# The value becomes a header: a line break would start another header.
_CONTENT_TYPE = re.compile(r"[ -~]{0,200}")
_CODE = re.compile(r"[a-z0-9_]{1,64}")
_ENDINGS: dict[frames.Ending, Ending] = {
    "completed": Ending.COMPLETED,
    "failed": Ending.FAILED,
    "lost": Ending.LOST,
    "released": Ending.RELEASED,
}
_COMPLETED = RunEnd(Ending.COMPLETED)
# A constant of the module: the member of an enum takes longer to look up.
ACCEPTED = SinkVerdict.ACCEPTED


class Connection:
    """`WorkerPort` over one WebSocket: queues the frames for the worker and writes them."""

    def __init__(
        self, send: Callable[[dict[str, Any]], Awaitable[None]], on_capacity: Callable[[], None]
    ) -> None:
        self._send = send
        self._on_capacity = on_capacity
        self._outbox = Outbox()
        self._filled = asyncio.Event()
        self._closing: str | None = None
        self._ended = asyncio.Event()
        # The worker keeps the frames of its runs until they are acknowledged.
        self._resends = False
        # The worker knows the header fields in a `Job`.
        self._knows_fields = False

    @property
    def backlog(self) -> int:
        return self._outbox.size

    def offer(self, job: OfferedJob) -> None:
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
                fields=request.fields if self._knows_fields else (),
            ),
            frames.Body(job.id, job.attempt, request.body),
        )
        self._filled.set()

    def stop(self, job_id: JobId, attempt: int) -> None:
        # The rest of the body is not needed: the worker accepts a stop in its place.
        self._outbox.drop(job_id, attempt)
        self._put(frames.Stop(job_id, attempt))

    def pause(self, job_id: JobId, attempt: int) -> None:
        self._put(frames.Pause(job_id, attempt))

    def resume(self, job_id: JobId, attempt: int, acknowledged: int, confirmed: int) -> None:
        self._put(frames.Resume(job_id, attempt, acknowledged))
        self.acknowledge(job_id, attempt, confirmed)

    def welcome(self, features: Sequence[str]) -> None:
        """Agree on the features that a worker and this proxy have. The first call."""
        common = [feature for feature in frames.FEATURES if feature in features]
        self._resends = frames.RESEND in common
        self._knows_fields = frames.FIELDS in common
        if common:
            self._put(frames.Welcome(common))

    def acknowledge(self, job_id: JobId, attempt: int, confirmed: int) -> None:
        if self._resends:
            self._put(frames.Acknowledge(job_id, attempt, confirmed))

    def close(self, reason: str) -> None:
        self._closing = reason
        self._filled.set()

    def has_unsent(self, job_id: JobId) -> bool:
        """Return True if a part of a job is still to be written."""
        return self._outbox.has_unsent(job_id)

    def ended(self) -> None:
        """Note that the connection has ended and that all its messages have been processed."""
        self._ended.set()

    async def wait_ended(self, seconds: float) -> None:
        """Wait until `ended` is called, for at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

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
                    self._on_capacity()
                before = self._outbox.size
            if self._closing is not None:
                await self._send(
                    {"type": "websocket.close", "code": 1012, "reason": self._closing[:120]}
                )
                return


class Reader:
    """Gives what a worker sends of its runs to their sinks.

    Frames for runs that the worker does not hold are ignored.
    """

    def __init__(self, worker: Worker, fleet: Fleet, port: WorkerPort) -> None:
        self._worker = worker
        self._fleet = fleet
        self._port = port

    def handle(self, frame: frames.Head | frames.Chunk | frames.End) -> None:
        """Process one frame of one run. Stale frames and frames of unassigned runs are ignored."""
        hold = self._hold(frame)
        if hold is None:
            return
        match frame:
            case frames.Chunk():
                hold.complete += 1
                verdict = hold.sink.chunk(frame.attempt, frame.data, more=frame.more)
                if verdict is not ACCEPTED:
                    self._judge(frame, verdict)
            case frames.Head():
                hold.complete += 1
                self._head(frame, hold)
            case frames.End():
                end = run_end(frame)
                task = self._fleet.end_run(self._worker, JobId(frame.job), frame.attempt, end)
                self._confirm_end(frame, task)

    async def handle_output(self, frame: frames.Output) -> None:
        """Process an output value of one run, like `handle`; waits for the check of a large one."""
        hold = self._hold(frame)
        if hold is not None and hold.sink.takes_values and hold.stopped is None:
            await self._output(frame, hold)

    def _hold(self, frame: frames.JobFrame) -> Hold | None:
        """Count a frame of a run, and return the run; None if the worker does not hold it."""
        worker = self._worker
        if worker.port is not self._port:
            # A newer connection has replaced this one, and its worker sends the frame again.
            return None
        hold = worker.holds.get(JobId(frame.job))
        if hold is None or hold.attempt != frame.attempt:
            log.debug(
                "frame.stale",
                job=frame.job[:JOB_CHARACTERS],
                attempt=frame.attempt,
                worker=worker.id,
            )
            # A worker answers a `Stop` that crossed the end of its run in this way.
            is_answer = isinstance(frame, frames.End) and frame.code == frames.UNKNOWN_RUN
            worker.ignored += not is_answer
            if isinstance(frame, frames.End):
                self._confirm_end(frame, None)
            return None
        hold.received += 1
        return hold

    def _confirm_end(self, end: frames.End, task: Task[bool] | None) -> None:
        """Acknowledge the end of a run, after the task that writes it to the store."""
        worker = self._worker
        job_id = JobId(end.job)
        if task is not None:
            worker.unwritten[job_id] = end.attempt
            task.add_done_callback(partial(self._end_written, job_id, end.attempt))
        elif worker.unwritten.get(job_id) != end.attempt:
            self._port.acknowledge(job_id, end.attempt, frames.ALL_FRAMES)

    def _end_written(self, job_id: JobId, attempt: int, task: Task[bool]) -> None:
        worker = self._worker
        if task.cancelled() or not task.result():
            # The worker keeps the end: a later proxy may still write it.
            return
        if worker.unwritten.get(job_id) == attempt:
            del worker.unwritten[job_id]
        # It may have reconnected in the meantime.
        if worker.port is not None:
            worker.port.acknowledge(job_id, attempt, frames.ALL_FRAMES)

    def _head(self, frame: frames.Head, hold: Hold) -> None:
        if hold.has_head:
            # A response has one head.
            self._worker.ignored += 1
        elif not hold.sink.takes_values and (fault := head_fault(frame)):
            self._cut(frame, JobError(ENGINE_ERROR, fault))
        else:
            hold.has_head = True
            fields = for_client(frame.fields) if frame.fields else ()
            head = Head(frame.status, frame.content_type, fields)
            self._judge(frame, hold.sink.head(frame.attempt, head))

    async def _output(self, frame: frames.Output, hold: Hold) -> None:
        """Collect the parts of an output value, check it, and give it to the sink."""
        value = frame.data
        if frame.more or hold.parts:
            hold.parts.append(value)
            hold.parts_size += len(value) + ELEMENT_OVERHEAD_BYTES
            if hold.parts_size > frames.OUTPUT_MAX_BYTES:
                hold.parts.clear()
                self._cut(frame, OVERFLOW)
                return
            if frame.more:
                return
            value = b"".join(hold.parts)
            hold.parts.clear()
            hold.parts_size = 0
        is_valid = await in_thread_if_large(is_value, value)
        if self._worker.port is not self._port:
            return
        hold.complete += 1
        if not is_valid or (frame.metrics and not are_metrics(frame.metrics)):
            self._cut(frame, NO_JSON)
            return
        taken = hold.sink.output(frame.attempt, value, frame.metrics, whole=frame.whole)
        self._judge(frame, taken)

    def _judge(self, frame: frames.JobFrame, taken: SinkVerdict) -> None:
        """Draw the consequence of a sink's verdict."""
        if taken is ACCEPTED:
            return
        match taken:
            case SinkVerdict.REPEATED:
                self._worker.ignored += 1
            case SinkVerdict.HEADLESS:
                self._cut(frame, NO_HEAD)
            case SinkVerdict.TOO_LARGE:
                self._cut(frame, OVERFLOW)

    def _cut(self, frame: frames.JobFrame, error: JobError) -> None:
        end = RunEnd(Ending.REFUSED, error)
        self._fleet.cut_run(self._worker, JobId(frame.job), frame.attempt, end)


def head_fault(head: frames.Head) -> str:
    """Return the error message for an invalid response head, or an empty string."""
    if not FIRST_STATUS <= head.status <= LAST_STATUS:
        return f"The engine returned an invalid HTTP status: {head.status}."
    if not _CONTENT_TYPE.fullmatch(head.content_type):
        return "The engine returned a Content-Type that is not a valid header value."
    return ""


def are_metrics(metrics: bytes) -> bool:
    """Return True if the metrics of an output value can be passed on."""
    return len(metrics) <= METRICS_MAX_BYTES and is_value(metrics)


def run_end(end: frames.End) -> RunEnd:
    """Return the end of a run, with defaults for a missing code or message of its error."""
    ending = _ENDINGS[end.ending]
    match ending:
        case Ending.COMPLETED:
            return _COMPLETED
        case Ending.FAILED if end.retry_after > 0:
            error = _worker_error(end, JobError(ENGINE_ERROR, ""))
            return RunEnd(Ending.FULL, error, retry_after=end.retry_after)
        case Ending.FAILED:
            return RunEnd(ending, _worker_error(end, JobError(ENGINE_ERROR, "")))
        case Ending.LOST:
            return RunEnd(ending, _worker_error(end, WORKER_LOST))
        case _:
            return RunEnd(ending)


def _worker_error(end: frames.End, default: JobError) -> JobError:
    code = end.code if _CODE.fullmatch(end.code) else ""
    return JobError(code or default.code, end.message[:MESSAGE_CHARACTERS] or default.message)
