"""The recorder writes the output of durable jobs into the store's log, many elements in one write.

An element is written within `FLUSH_INTERVAL_SECONDS`; its readers are notified then. Until it is
written it counts as backlog: a worker that is faster than the disk is paused like one that is
faster than its reader.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from proxy.jobs.model import Head, Job, JobId
from proxy.jobs.policy import Correction, RunEnd
from proxy.service.events import JobEvents
from proxy.service.ports import SinkVerdict, WorkerPort
from proxy.store.base import JobStore
from proxy.wire.flow import HIGH_WATERMARK_BYTES, ReceiveFlow
from proxy.wire.frames import OUTPUT_MAX_BYTES

FLUSH_INTERVAL_SECONDS = 0.05
# Unwritten bytes of all jobs together that cause a write at once.
FLUSH_BYTES = 64 * 1024
# The whole output of one job.
# The memory that an element takes in addition to its bytes, so that empty elements are bounded too.
ELEMENT_OVERHEAD_BYTES = 64
# A worker resumes when the disk has caught up to the watermark at which it was paused.
RESUME_BELOW_BYTES = HIGH_WATERMARK_BYTES + 1

OnRunEnd: TypeAlias = Callable[["Recording", RunEnd], asyncio.Task[bool]]
"""Starts the task that writes the end of a recorded run."""


class Recording:
    """The output of one run, as far as it is not in the store. Implements `Sink`.

    `run`: the number that its writes carry. `whole`: the output itself, for a job whose output is
    not a list. `progress`: the progress that the worker reported last, as JSON.
    """

    takes_values = True

    def __init__(
        self, recorder: "Recorder", job: Job, on_run_end: OnRunEnd, position: int = 0
    ) -> None:
        self.job_id = job.id
        self.endpoint = job.endpoint
        self.attempt = job.attempt
        self.run = job.run
        self.whole: bytes | None = None
        self.progress: bytes | None = None
        # The number of elements in the store.
        self.position = position
        # Elements that are to be written.
        self.waiting: list[bytes] = []
        self.flow = ReceiveFlow(low_watermark=RESUME_BELOW_BYTES)
        # The elements in the store have been corrected.
        self.is_corrected = False
        # Held by a write, so that elements are written in order, also while the disk is full.
        self.lock = asyncio.Lock()
        self._recorder = recorder
        self._on_run_end = on_run_end
        self._port: WorkerPort | None = None
        # Bytes of the output so far, with overhead.
        self._size = 0
        self._has_ended = False

    # `Sink`

    def begin(self, attempt: int, port: WorkerPort) -> None:
        self.reattach(attempt, port)

    def reattach(self, attempt: int, port: WorkerPort) -> SinkVerdict:
        if not self._is_current(attempt):
            return SinkVerdict.IGNORED
        self._port = port
        self.flow.restart()
        return SinkVerdict.ACCEPTED

    def head(self, attempt: int, head: Head) -> SinkVerdict:  # noqa: ARG002 - of interactive jobs
        return SinkVerdict.IGNORED

    # As `head`.
    def chunk(self, attempt: int, data: bytes, *, more: bool) -> SinkVerdict:  # noqa: ARG002
        return SinkVerdict.IGNORED

    def output(self, attempt: int, value: bytes, metrics: bytes, *, whole: bool) -> SinkVerdict:
        if not self._is_current(attempt):
            return SinkVerdict.IGNORED
        self._size += len(value) + len(metrics) + ELEMENT_OVERHEAD_BYTES
        if self._size > OUTPUT_MAX_BYTES:
            return SinkVerdict.TOO_LARGE
        if whole:
            self.whole = value
            return SinkVerdict.ACCEPTED
        self.waiting.append(element(value, metrics))
        is_full = self.flow.received(len(value))
        self._recorder.received(len(value))
        if is_full and self._port is not None:
            self._port.pause(self.job_id, attempt)
        return SinkVerdict.ACCEPTED

    def end(self, attempt: int, end: RunEnd) -> asyncio.Task[bool] | None:
        if not self._is_current(attempt):
            return None
        self._has_ended = True
        return self._on_run_end(self, end)

    def drop(self, attempt: int) -> None:
        if attempt == self.attempt:
            self._has_ended = True
            self._recorder.drop(self)

    # Called by the recorder

    def written(self, size: int) -> None:
        """Count bytes that are in the store; let the worker continue if it may."""
        self.flow.taken += size
        if self._port is None:
            return
        acknowledged = self.flow.resume()
        if acknowledged is not None:
            self._port.resume(self.job_id, self.attempt, acknowledged, self.position)

    def _is_current(self, attempt: int) -> bool:
        return attempt == self.attempt and not self._has_ended


class Recorder:
    """The recordings of all running durable jobs."""

    def __init__(self, store: JobStore, events: JobEvents) -> None:
        self._store = store
        self._events = events
        self._recordings: dict[JobId, Recording] = {}
        self._filled = asyncio.Event()
        self._full = asyncio.Event()
        self._backlog = 0

    def __len__(self) -> int:
        return len(self._recordings)

    def open(self, job: Job, on_run_end: OnRunEnd, position: int = 0) -> Recording:
        """Return a new recording of the job's run, in place of an earlier run's.

        `position`: the number of elements that the store has of this run.
        """
        if (earlier := self._recordings.get(job.id)) is not None:
            self.drop(earlier)
        recording = Recording(self, job, on_run_end, position)
        self._recordings[job.id] = recording
        return recording

    def get(self, job_id: JobId) -> Recording | None:
        """Return the recording of a job that is running."""
        return self._recordings.get(job_id)

    def note(self, job_id: JobId, attempt: int, progress: bytes) -> None:
        """Keep the progress that a worker reports, as JSON, until its run ends."""
        recording = self._recordings.get(job_id)
        if recording is not None and recording.attempt == attempt:
            recording.progress = progress

    def drop(self, recording: Recording) -> None:
        """Discard a recording, with its unwritten output."""
        if self._recordings.get(recording.job_id) is recording:
            del self._recordings[recording.job_id]
            self._backlog -= recording.flow.backlog

    def received(self, size: int) -> None:
        """Count output that is to be written."""
        self._backlog += size
        self._filled.set()
        if self._backlog >= FLUSH_BYTES:
            self._full.set()

    async def serve(self) -> None:
        """Write whenever there is output, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_SECONDS):
                    await self._full.wait()
            self._full.clear()
            await self.flush_all()

    async def flush_all(self) -> None:
        """Write the output so far of all jobs."""
        waiting = [recording for recording in self._recordings.values() if recording.waiting]
        await asyncio.gather(*map(self.flush, waiting))

    async def flush(self, recording: Recording, *, notify: bool = True) -> None:
        """Write the output so far of one job, and notify its readers unless the job ends next.

        If the caller is cancelled, the write continues: its result decides if the elements have to
        be written again.
        """
        await asyncio.shield(self._write(recording, notify=notify))

    async def correct(self, recording: Recording, correction: Correction) -> bool:
        """Correct the written output; return False if a reader has received output of the run."""
        if not recording.is_corrected:
            recording.is_corrected = await self._store.rewrite(
                recording.job_id, recording.run, correction.start, correction.elements
            )
        return recording.is_corrected

    async def _write(self, recording: Recording, *, notify: bool) -> None:
        async with recording.lock:
            elements = recording.waiting
            if not elements:
                return
            recording.waiting = []
            size = recording.flow.backlog
            recording.flow.backlog = 0
            self._backlog -= size
            is_written = False
            try:
                await self._store.append(
                    recording.job_id, recording.run, elements, recording.position
                )
                is_written = True
                recording.position += len(elements)
            finally:
                if not is_written:
                    recording.waiting[:0] = elements
                    recording.flow.backlog += size
                    if self._recordings.get(recording.job_id) is recording:
                        self.received(size)
        if notify:
            self._events.notify_progress(recording.job_id)
        recording.written(size)


def output_of(stored: bytes) -> bytes:
    """Return the output of an element without metrics."""
    return stored.removeprefix(b'{"output":').removesuffix(b"}")


def element(output: bytes, metrics: bytes) -> bytes:
    """Return one element of a job's output as its readers receive it."""
    if metrics:
        return b'{"output":%b,"metrics":%b}' % (output, metrics)
    return b'{"output":%b}' % output
