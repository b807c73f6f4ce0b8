"""Takes down the output of durable jobs: what the channels put in goes into the store's log, many pieces in one write.

A piece is written within `EVERY_SECONDS`, and its readers hear of it then. Until it is written it counts as backlog: a
worker that is ahead of the disk is paused like one that is ahead of a reader.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from proxy.jobs.model import JobId
from proxy.service.events import JobEvents
from proxy.service.json_text import in_thread_if_large, is_value
from proxy.service.mailbox import PAUSE_ABOVE
from proxy.service.ports import WorkerPort
from proxy.store.base import JobStore, StoreFullError
from proxy.wire.frames import STREAM_WINDOW

log = structlog.get_logger()

EVERY_SECONDS = 0.05
FULL_BYTES = 64 * 1024  # of all jobs together: then it is written at once
MOST_BYTES = 64 * 1024 * 1024  # of one job's whole output
METRICS_BYTES = 64 * 1024  # of one piece; ours have 200
PIECE_BYTES = 64  # what a piece costs beside its bytes: empty ones are not free


class NoJsonError(ValueError):
    """A piece of output is no JSON: it stands in the middle of answers, which nobody could read any more."""


@dataclass(slots=True)
class Recording:
    """The output of one attempt, as far as it is not in the store."""

    attempt: int
    port: WorkerPort | None
    parts: list[bytes] = field(default_factory=list)  # of a value that has not come whole
    waiting: list[bytes] = field(default_factory=list)  # elements that are to be written
    backlog: int = 0
    written: int = 0  # bytes since the worker was last told to go on
    size: int = 0
    whole: bytes | None = None  # the output itself, for a job whose output is no list
    is_paused: bool = False
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    progress: bytes | None = None  # what the worker last said of how far it is, as JSON


class Recorder:
    """The recordings of all durable jobs that run."""

    def __init__(self, store: JobStore, events: JobEvents) -> None:
        self._store, self._events = store, events
        self._recordings: dict[JobId, Recording] = {}
        self._filled = asyncio.Event()
        self._full = asyncio.Event()
        self._backlog = 0

    def begin(self, job_id: JobId, attempt: int, port: WorkerPort) -> None:
        """A worker has this run now, whether anew or over another connection."""
        recording = self._recordings.get(job_id)
        if recording is None or recording.attempt != attempt:
            self.drop(job_id)
            self._recordings[job_id] = Recording(attempt, port)
            return
        recording.port, recording.is_paused, recording.written = port, False, 0

    async def put(
        self, job_id: JobId, attempt: int, data: bytes, metrics: bytes, *, whole: bool, more: bool
    ) -> bool:
        """A piece of output, which must be JSON: else `NoJsonError`. False if the job has more of it than may be."""
        recording = self._recordings.get(job_id)
        if recording is None or recording.attempt != attempt:
            return True
        recording.size += len(data) + len(metrics) + PIECE_BYTES
        if recording.size > MOST_BYTES:
            return False
        if more or recording.parts:
            recording.parts.append(data)
        if more:
            return True
        value, recording.parts = b"".join(recording.parts) if recording.parts else data, []
        if not await in_thread_if_large(is_value, value) or (metrics and not _are_metrics(metrics)):
            raise NoJsonError
        if self._recordings.get(job_id) is not recording:
            return True  # it was ended meanwhile
        if whole:
            recording.whole = value
            return True
        recording.waiting.append(element(value, metrics))
        recording.backlog += len(value)
        self._backlog += len(value)
        self._filled.set()
        if self._backlog >= FULL_BYTES:
            self._full.set()
        if (
            recording.backlog > PAUSE_ABOVE
            and not recording.is_paused
            and recording.port is not None
        ):
            recording.is_paused = True
            recording.port.pause(job_id, attempt)
        return True

    def note(self, job_id: JobId, attempt: int, progress: bytes) -> None:
        """The worker says how far it is; it is forgotten when the run ends."""
        recording = self._recordings.get(job_id)
        if recording is not None and recording.attempt == attempt:
            recording.progress = progress

    def progress(self, job_id: JobId) -> bytes | None:
        """How far a job is, if its worker has said so."""
        recording = self._recordings.get(job_id)
        return recording.progress if recording is not None else None

    async def close(self, job_id: JobId, attempt: int) -> bytes | None:
        """The run has ended: write what is left of it. Gives the output, if it is no list."""
        recording = self._recordings.get(job_id)
        if recording is None or recording.attempt != attempt:
            return None
        await self._write(job_id, recording)
        self._recordings.pop(job_id, None)
        return recording.whole

    async def flush(self, job_id: JobId) -> None:
        """Write what is there of a job that goes on, or is about to be ended."""
        recording = self._recordings.get(job_id)
        if recording is not None:
            await self._write(job_id, recording)

    def drop(self, job_id: JobId) -> None:
        """What this run has said is not wanted."""
        recording = self._recordings.pop(job_id, None)
        if recording is not None:
            self._backlog -= recording.backlog

    async def serve(self) -> None:
        """Write for ever."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._full.wait()
            self._full.clear()
            await self.flush_all()

    async def flush_all(self) -> None:
        """Write what there is of all jobs."""
        waiting = [(job_id, one) for job_id, one in self._recordings.items() if one.waiting]
        await asyncio.gather(*(self._write(job_id, one) for job_id, one in waiting))

    async def _write(self, job_id: JobId, recording: Recording) -> None:
        async with recording.writing:  # in their order, also when the disk is full for a while
            elements, recording.waiting = recording.waiting, []
            if not elements:
                return
            size, recording.backlog = recording.backlog, 0
            self._backlog -= size
            try:
                await self._store.append(job_id, recording.attempt, elements)
            except StoreFullError:
                recording.waiting[:0] = elements
                recording.backlog += size
                self._backlog += size
                self._filled.set()
                raise
        self._events.notify(job_id)
        recording.written += size
        is_owed = recording.is_paused or recording.written >= STREAM_WINDOW // 2
        if is_owed and recording.backlog <= PAUSE_ABOVE and recording.port is not None:
            recording.is_paused, recording.written = False, 0
            recording.port.resume(job_id, recording.attempt)


def _are_metrics(metrics: bytes) -> bool:
    return len(metrics) <= METRICS_BYTES and is_value(metrics)


def element(output: bytes, metrics: bytes) -> bytes:
    """One element of a job's stream, as its readers get it."""
    return (
        b'{"output":%b,"metrics":%b}' % (output, metrics) if metrics else b'{"output":%b}' % output
    )
