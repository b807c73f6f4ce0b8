"""The recorder writes the output of durable jobs into the store's log, many elements in one write.

An element is written within `FLUSH_SECONDS`; its readers are notified then. Until it is written it
counts as backlog: a worker that is faster than the disk is paused like one that is faster than its
reader.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from proxy.jobs.model import JobId
from proxy.service.events import JobEvents
from proxy.service.json_text import in_thread_if_large, is_value
from proxy.service.ports import WorkerPort
from proxy.store.base import JobStore, StoreFullError
from proxy.wire.flow import HIGH_WATERMARK_BYTES, ReceiveFlow

log = structlog.get_logger()

FLUSH_SECONDS = 0.05
# Unwritten bytes of all jobs together that cause a write at once.
FLUSH_BYTES = 64 * 1024
# The whole output of one job.
OUTPUT_MAX_BYTES = 64 * 1024 * 1024
# The metrics of one element; those of our own worker have about 200 bytes.
METRICS_MAX_BYTES = 64 * 1024
# The memory that an element takes in addition to its bytes, so that empty elements are bounded too.
ELEMENT_OVERHEAD_BYTES = 64
# A worker resumes when the disk has caught up to the watermark at which it was paused.
RESUME_BELOW_BYTES = HIGH_WATERMARK_BYTES + 1


class InvalidOutputError(ValueError):
    """A piece of output is not JSON. It would make every answer that contains it unreadable."""


def _flow() -> ReceiveFlow:
    return ReceiveFlow(low_watermark=RESUME_BELOW_BYTES)


@dataclass(slots=True)
class Recording:
    """The output of one attempt, as far as it is not in the store."""

    attempt: int
    port: WorkerPort | None
    parts: list[bytes] = field(default_factory=list)
    """The parts of an incomplete value."""
    waiting: list[bytes] = field(default_factory=list)
    """Elements that are to be written."""
    flow: ReceiveFlow = field(default_factory=_flow)
    size: int = 0
    """Bytes of the output so far, with overhead."""
    whole: bytes | None = None
    """The output itself, for a job whose output is not a list."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    progress: bytes | None = None
    """The progress that the worker reported last, as JSON."""


class Recorder:
    """The recordings of all running durable jobs."""

    def __init__(self, store: JobStore, events: JobEvents) -> None:
        self._store = store
        self._events = events
        self._recordings: dict[JobId, Recording] = {}
        self._filled = asyncio.Event()
        self._full = asyncio.Event()
        self._backlog = 0

    def begin(self, job_id: JobId, attempt: int, port: WorkerPort) -> None:
        """Start the recording of a run, or continue it over another connection."""
        recording = self._recordings.get(job_id)
        if recording is None or recording.attempt != attempt:
            self.drop(job_id)
            self._recordings[job_id] = Recording(attempt, port)
            return
        recording.port = port
        recording.flow.restart()

    async def put(
        self, job_id: JobId, attempt: int, data: bytes, metrics: bytes, *, whole: bool, more: bool
    ) -> bool:
        """Take a piece of output; `more`: the next one continues it; `whole`: it is the output
        itself, not an element.

        Returns False if the job's output exceeds `OUTPUT_MAX_BYTES`. Raises `InvalidOutputError` if
        it is not JSON.
        """
        recording = self._recordings.get(job_id)
        if recording is None or recording.attempt != attempt:
            return True
        recording.size += len(data) + len(metrics) + ELEMENT_OVERHEAD_BYTES
        if recording.size > OUTPUT_MAX_BYTES:
            return False
        if more or recording.parts:
            recording.parts.append(data)
        if more:
            return True
        value = b"".join(recording.parts) if recording.parts else data
        recording.parts = []
        is_valid = await in_thread_if_large(is_value, value)
        if not is_valid or (metrics and not _are_metrics(metrics)):
            raise InvalidOutputError
        if self._recordings.get(job_id) is not recording:
            return True  # the run was ended in the meantime
        if whole:
            recording.whole = value
            return True
        recording.waiting.append(element(value, metrics))
        recording.flow.received(len(value))
        self._backlog += len(value)
        self._filled.set()
        if self._backlog >= FLUSH_BYTES:
            self._full.set()
        if recording.port is not None and recording.flow.should_pause():
            recording.port.pause(job_id, attempt)
        return True

    def note(self, job_id: JobId, attempt: int, progress: bytes) -> None:
        """Keep the progress that a worker reports, as JSON, until its run ends."""
        recording = self._recordings.get(job_id)
        if recording is not None and recording.attempt == attempt:
            recording.progress = progress

    def progress(self, job_id: JobId) -> bytes | None:
        """Return the progress that was reported last, as JSON, if any."""
        recording = self._recordings.get(job_id)
        return recording.progress if recording is not None else None

    async def close(self, job_id: JobId, attempt: int) -> bytes | None:
        """Write the rest of a run that has ended. Return the job's output if it is not a list."""
        recording = self._recordings.get(job_id)
        if recording is None or recording.attempt != attempt:
            return None
        await self._write(job_id, recording)
        self._recordings.pop(job_id, None)
        return recording.whole

    async def flush(self, job_id: JobId) -> None:
        """Write the output so far of a job that continues or is about to be ended."""
        recording = self._recordings.get(job_id)
        if recording is not None:
            await self._write(job_id, recording)

    def drop(self, job_id: JobId) -> None:
        """Discard the unwritten output of a run."""
        recording = self._recordings.pop(job_id, None)
        if recording is not None:
            self._backlog -= recording.flow.backlog

    async def serve(self) -> None:
        """Write whenever there is output, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._full.wait()
            self._full.clear()
            await self.flush_all()

    async def flush_all(self) -> None:
        """Write the output so far of all jobs."""
        waiting = [(job_id, one) for job_id, one in self._recordings.items() if one.waiting]
        await asyncio.gather(*(self._write(job_id, one) for job_id, one in waiting))

    async def _write(self, job_id: JobId, recording: Recording) -> None:
        # The lock keeps the order, also while the disk is full.
        async with recording.writing:
            elements = recording.waiting
            recording.waiting = []
            if not elements:
                return
            size = recording.flow.backlog
            recording.flow.backlog = 0
            self._backlog -= size
            try:
                await self._store.append(job_id, recording.attempt, elements)
            except StoreFullError:
                recording.waiting[:0] = elements
                recording.flow.backlog += size
                self._backlog += size
                self._filled.set()
                raise
        self._events.notify(job_id)
        recording.flow.taken += size
        if recording.port is not None and recording.flow.should_resume():
            recording.port.resume(job_id, recording.attempt)


def _are_metrics(metrics: bytes) -> bool:
    return len(metrics) <= METRICS_MAX_BYTES and is_value(metrics)


def element(output: bytes, metrics: bytes) -> bytes:
    """Return one element of a job's output as its readers receive it."""
    if metrics:
        return b'{"output":%b,"metrics":%b}' % (output, metrics)
    return b'{"output":%b}' % output
