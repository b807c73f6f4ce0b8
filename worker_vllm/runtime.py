"""Runs jobs: takes them from the channel, has the handler answer them, puts heads, chunks and one `End` in the outbox.

A run leaves the books when its `End` is handed to the socket; until then `hello` lists it, so that a proxy that dials
again, or is dialled again, keeps it. The attempt is the fence: frames of another attempt are ignored, and a newer
attempt of a job replaces the older one.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import structlog

from proxy.wire import frames
from proxy.wire.frames import (
    Body,
    Chunk,
    Credit,
    End,
    Ending,
    Frame,
    Hello,
    Hold,
    Job,
    JobFrame,
    Model,
    Pause,
    Resume,
    Stop,
    ToWorker,
)
from proxy.wire.outbox import Outbox
from worker_vllm.asgi import Head
from worker_vllm.engine.base import Engine
from worker_vllm.handler import EVENT_STREAM, EngineFailedError, RunLostError, handle
from worker_vllm.inputs.answering import InputFailedError, answer_input
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.run import BODY_BYTES, BadBodyError, Run
from worker_vllm.settings import OutputFormat

LIGHT_SLOTS = 32  # calls that never reach the model (tokenize, version, ...) and take no slot
BACKLOG_HIGH = 128 * 1024  # bytes of a job in the outbox above which its engine output waits
BACKLOG_LOW = 32 * 1024  # and below which it goes on
OLD_PROXY_SECONDS = 1.0  # an older proxy sends no `Resume` within an event: unless it pauses the run, it is sent more
STOP_SECONDS = 15.0  # how long stopped runs may take to end, before the worker goes without them


class Runtime:
    """The jobs of one worker. Speaks through its outbox; its runs are tasks of `group`."""

    def __init__(
        self,
        worker: str,
        engine: Engine,
        models: list[Model],
        slots: int,
        outbox: Outbox,
        group: asyncio.TaskGroup,
        output_format: OutputFormat = "seed",
    ) -> None:
        self._worker = worker
        self._engine = engine
        self._models = models
        self._slots = slots
        self._outbox = outbox
        self._group = group
        self._output_format = output_format
        self._gauges = Gauges(engine.read, asyncio.get_running_loop().time)
        self._runs: dict[str, Run] = {}
        self._is_draining = False
        self._idle = asyncio.Event()  # no run is in the books
        self._idle.set()
        self._log = structlog.get_logger()
        self.moves = 0  # grows with every piece of output

    # What the channel asks (see `Peer`)

    def hello(self) -> Hello:
        holds = [Hold(run.job.job, run.job.attempt, run.sent) for run in self._runs.values()]
        return Hello(frames.PROTOCOL, self._worker, self._engine.name, self._models, holds)

    def credit(self) -> Credit:
        return Credit(0, 0) if self._is_draining else Credit(self._slots, LIGHT_SLOTS)

    def receive(self, frame: ToWorker) -> None:
        if isinstance(frame, Job):
            self._take(frame)
            return
        run = self._runs.get(frame.job)
        if run is None or run.job.attempt != frame.attempt:
            if isinstance(
                frame, Stop
            ):  # it has overtaken its job, or crossed its end: the proxy waits for an end
                self._outbox.put_in_lane(End(frame.job, frame.attempt, "released", "unknown_run"))
            return
        if run.is_ending:
            return
        match frame:
            case Body():
                self._add(run, frame)
            case Stop():
                self._outbox.drop(frame.job)
                self._stop(run, run.end("released", "stopped", "stopped by the proxy"))
            case Pause():
                run.is_paused = True
            case Resume():
                self._go_on(run)

    def sent(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if not isinstance(frame, JobFrame):
                continue
            run = self._runs.get(frame.job)
            if run is None or run.job.attempt != frame.attempt:
                continue
            run.sent += 1
            if isinstance(frame, End):
                self._forget(run)
            elif run.is_held_back:
                self._make_room(run)

    def disconnected(self) -> None:
        for run in [run for run in self._runs.values() if run.is_arriving]:
            self._forget(
                run
            )  # the rest of its body will not come; the proxy sees that `hello` does not list it
        for run in self._runs.values():
            self._go_on(
                run
            )  # a pause ends with its connection; the proxy pauses anew where it must

    # What the worker asks

    @property
    def is_waiting_for_engine(self) -> bool:
        """Is there a run that the engine, and nobody else, holds up?"""
        return any(run.waits_for_engine for run in self._runs.values())

    async def drain(self, seconds: float) -> None:
        """Take no more; hand back what has not begun, let the rest finish. After `seconds` that is handed back too, or
        lost if some of its output has left.
        """
        self._take_no_more()
        for run in list(self._runs.values()):
            if not run.has_begun:
                self._stop(run, run.end("released", "drained", "the worker stops"))
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            for run in list(self._runs.values()):
                if not run.has_output:
                    self._stop(run, run.end("released", "drained", "the worker stops"))
            await self.lose_all("worker_stopped", "the worker had to stop before the job was done")

    async def lose_all(self, code: str, message: str) -> None:
        """End every run as lost, and wait until that is so."""
        self._take_no_more()
        for run in list(self._runs.values()):
            self._stop(run, run.end("lost", code, message))
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        if tasks:
            _, deaf = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in deaf:
                task.cancel()  # once more: it waits for an engine that does not let go

    def _take_no_more(self) -> None:
        """Say so before any end does: a job that is handed back, or lost, must not come straight back here."""
        if not self._is_draining:
            self._is_draining = True
            self._outbox.put(self.credit())

    # Its own work

    def _take(self, job: Job) -> None:
        held = self._runs.get(job.job)
        if held is not None and held.job.attempt >= job.attempt:
            return  # a duplicate, or older than what we have
        if held is not None:
            self._replace(held)
        run = self._runs[job.job] = Run(job)
        self._idle.clear()
        refusal = self._refusal(job)
        if refusal is not None:
            self._finish(run, run.end(*refusal))
        elif job.size == 0:
            self._start(run)

    def _refusal(self, job: Job) -> tuple[Ending, str, str] | None:
        held = sum(run.job.light == job.light for run in self._runs.values())
        if self._is_draining:
            return "released", "drained", "the worker stops"
        if held > (LIGHT_SLOTS if job.light else self._slots):
            return "released", "no_slot", "every slot of the worker is taken"
        if job.size > BODY_BYTES:
            return "lost", "body_too_big", f"a worker takes bodies of at most {BODY_BYTES} bytes"
        return None

    def _add(self, run: Run, part: Body) -> None:
        if not run.is_arriving:
            return
        try:
            if run.add(part):
                self._start(run)
        except BadBodyError as error:
            self._finish(run, run.end("lost", "bad_body", str(error)))

    def _start(self, run: Run) -> None:
        run.task = self._group.create_task(self._run(run), name=f"run {run.job.job}")

    async def _run(self, run: Run) -> None:
        """Answer one job. Ends with its one `End`, whatever happens."""
        run.has_begun = True
        self._log.debug("job.started", job=run.job.job, attempt=run.job.attempt, path=run.job.path)
        try:
            end = await self._answer(run)
        except asyncio.CancelledError:
            if run.verdict is None:
                raise
            end = run.verdict
        except (EngineFailedError, InputFailedError) as error:
            end = run.end("failed", error.code, str(error))
        except RunLostError as error:
            if self._engine.dead:
                self._take_no_more()
            end = run.end("lost", error.code, str(error))
        except Exception as error:  # noqa: BLE001 - the border of a task: a bug of ours costs this job, not the worker
            self._log.exception("job.broke", job=run.job.job, attempt=run.job.attempt)
            end = run.end("lost", "worker_error", repr(error))
        self._log.debug(
            "job.ended", job=run.job.job, attempt=run.job.attempt, ending=end.ending, code=end.code
        )
        self._finish(run, run.verdict or end)

    async def _answer(self, run: Run) -> End:
        if run.job.input:
            return await self._answer_input(run)
        job, attempt = run.job.job, run.job.attempt
        async with aclosing(handle(self._engine, run.request())) as answer:  # type: ignore[type-var]
            async for piece in answer:
                self.moves += 1
                if isinstance(piece, Head):
                    run.has_window = piece.content_type.startswith(EVENT_STREAM)
                    self._outbox.put_in_lane(
                        frames.Head(job, attempt, piece.status, piece.content_type)
                    )
                    continue
                await self._put(run, Chunk(job, attempt, piece.data, piece.more))
        return run.end("completed")

    async def _answer_input(self, run: Run) -> End:
        model = self._models[0].id if self._models else ""
        outputs = answer_input(
            self._engine, self._gauges, run.request().body, model, self._output_format
        )
        run.has_window = True
        async with aclosing(outputs) as answer:  # type: ignore[type-var]
            async for output in answer:
                self.moves += 1
                frame = frames.Output(
                    run.job.job, run.job.attempt, output.value, output.metrics, output.is_whole
                )
                await self._put(run, frame)
        return run.end("completed")

    async def _put(self, run: Run, frame: Chunk | frames.Output) -> None:
        """Send a piece of the answer, when there is room for it."""
        run.has_output = True
        if not run.may_send or self._outbox.backlog(frame.job) > BACKLOG_HIGH:
            await self._room(run)
        run.unanswered += len(frame.data) if run.has_window else 0
        run.is_in_event = frame.more
        self._outbox.put_in_lane(frame)

    async def _room(self, run: Run) -> None:
        """Wait until the job may send again."""
        run.room.clear()
        run.is_held_back = True
        try:
            while not run.room.is_set():
                try:
                    async with asyncio.timeout(OLD_PROXY_SECONDS if run.is_in_event else None):
                        await run.room.wait()
                except TimeoutError:
                    if not run.is_paused and self._outbox.backlog(run.job.job) < BACKLOG_LOW:
                        self._go_on(run)
        finally:
            run.is_held_back = False

    def _go_on(self, run: Run) -> None:
        run.is_paused, run.unanswered = False, 0
        self._make_room(run)

    def _make_room(self, run: Run) -> None:
        if run.may_send and self._outbox.backlog(run.job.job) < BACKLOG_LOW:
            run.room.set()

    def _stop(self, run: Run, verdict: End) -> None:
        """End a run for a reason of our own; the first reason counts."""
        if run.is_ending or run.verdict is not None:
            return
        run.verdict = verdict
        if run.task is not None:
            run.task.cancel()
        if not run.has_begun:
            self._finish(
                run, verdict
            )  # nor will it: a task that is cancelled before its first step never runs

    def _finish(self, run: Run, end: End) -> None:
        run.is_ending = True
        if self._runs.get(run.job.job) is run:
            self._outbox.put_in_lane(end)

    def _replace(self, old: Run) -> None:
        """The proxy has handed out a newer attempt: the old one ends unheard."""
        self._outbox.drop(old.job.job)
        self._forget(old)
        if old.task is not None and old.verdict is None:
            old.verdict = old.end("released", "replaced")
            old.task.cancel()

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.job.job) is run:
            del self._runs[run.job.job]
        if not self._runs:
            self._idle.set()
