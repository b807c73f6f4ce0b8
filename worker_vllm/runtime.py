"""Runs jobs: takes them from a channel, answers them with the handler, and sends the frames.

The frames of a run are a head and chunks, or outputs, and one `End`; they go into the outbox. A run
is removed when its `End` is handed to the socket. Until then, and for a short time after that
(`EndedRuns`), `hello` lists it, so that the proxy can tell what it has received. A proxy with the
feature `RESEND` confirms the frames that it has; the others are kept, and sent again after a lost
connection.

A run belongs to the connection that its job came from (`Run.origin`): its frames leave through that
outbox, and frames from another connection do not concern it. The attempt is the fencing token:
frames of another attempt are ignored, and a newer attempt of a job replaces the older one.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import structlog

from proxy.wire import frames
from proxy.wire.flow import Outbox
from proxy.wire.frames import (
    ALL_FRAMES,
    FEATURES,
    FIELDS,
    RESEND,
    UNKNOWN_RUN,
    Acknowledge,
    Body,
    Credit,
    End,
    Ending,
    Frame,
    Hello,
    Job,
    JobFrame,
    Model,
    Pause,
    Resume,
    Stop,
    ToWorker,
    Welcome,
)
from proxy.wire.sse import Part
from worker_vllm import handler
from worker_vllm.asgi import Head
from worker_vllm.engine.base import Engine
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.phases import NOT_BEGUN, Phase, RunEvent
from worker_vllm.run import (
    BODY_MAX_BYTES,
    INTERNAL_ERROR,
    BadBodyError,
    EndedRuns,
    OutputGoneError,
    ResendBuffer,
    Run,
)
from worker_vllm.settings import OutputFormat

# Calls that never reach the model (tokenize, version, ...) do not occupy the worker's slots.
LIGHT_SLOTS = 32
# How long stopped runs may take to end before the worker exits without them.
STOP_SECONDS = 15.0


class Runtime:
    """The jobs of one worker. Implements `Peer` for its channels; runs are tasks of `group`."""

    def __init__(
        self,
        worker: str,
        engine: Engine,
        models: list[Model],
        slots: int,
        group: asyncio.TaskGroup,
        output_format: OutputFormat = "seed",
        instance: str = "",
    ) -> None:
        self._worker = worker
        self._instance = instance
        self._engine = engine
        self._models = models
        self._slots = slots
        self._group = group
        self._output_format = output_format
        self._gauges = Gauges(engine.read, asyncio.get_running_loop().time)
        self._runs: dict[str, Run] = {}
        self._ended = EndedRuns(asyncio.get_running_loop().time)
        self._outboxes: list[Outbox] = []
        # The features of the proxy at the other end of each open connection.
        self._features: dict[Outbox, Sequence[str]] = {}
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        # Bound once: each call of an unbound logger binds it.
        self._log = structlog.get_logger().bind()
        self.moves = 0
        """The number of pieces of output so far. The watchdog compares it."""

    # `Peer`

    def hello(self, origin: Outbox) -> Hello:
        if origin not in self._outboxes:
            self._outboxes.append(origin)
        held = [run for run in self._runs.values() if run.origin is origin]
        held += self._ended.recent(origin, besides=self._runs)
        return Hello(
            frames.PROTOCOL,
            self._worker,
            self._engine.name,
            self._models,
            [run.hold() for run in held],
            self._instance,
            list(FEATURES),
        )

    def credit(self, origin: Outbox) -> Credit:  # noqa: ARG002 - one connection has all slots
        return Credit(0, 0) if self._is_draining else Credit(self._slots, LIGHT_SLOTS)

    def receive(self, origin: Outbox, frame: ToWorker) -> None:
        match frame:
            case Job():
                self._accept(origin, frame)
            case Welcome(features=features):
                self._features[origin] = features
            case Acknowledge():
                self._confirm(origin, frame)
            case _:
                self._control(origin, frame)

    def _control(self, origin: Outbox, frame: Body | Stop | Pause | Resume) -> None:
        run = self._runs.get(frame.job)
        if run is None or run.job.attempt != frame.attempt or run.origin is not origin:
            if isinstance(frame, Stop):
                # It overtook its job, or crossed its end. The proxy waits for an `End` in both
                # cases.
                self._forget_ended(frame.job)
                origin.put_in_lane(End(frame.job, frame.attempt, "released", UNKNOWN_RUN))
            return
        if run.phase is Phase.ENDED:
            if isinstance(frame, Stop) and run.kept is not None:
                # Its end may be in no lane.
                run.discard()
                run.put(run.end("released", UNKNOWN_RUN))
            return
        match frame:
            case Body():
                self._add(run, frame)
            case Stop():
                run.discard()
                self._stop(run, run.end("released", "stopped", "stopped by the proxy"))
            case Pause():
                run.flow.pause()
            case Resume(acknowledged=acknowledged):
                run.resume(acknowledged)

    def sent(self, origin: Outbox, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if not isinstance(frame, JobFrame):
                continue
            run = self._runs.get(frame.job)
            if run is None or run.job.attempt != frame.attempt or run.origin is not origin:
                continue
            run.frames_sent += 1
            if isinstance(frame, End):
                self._ended.add(run)
                self._forget(run)
            elif not run.may_continue.is_set():
                run.continue_if_possible()

    def disconnected(self, origin: Outbox) -> None:
        self._features.pop(origin, None)
        for run in self._ended.recent(origin, besides=()):
            if run.kept is not None:
                run.detach()
        for run in [run for run in self._runs.values() if run.origin is origin]:
            if run.phase is Phase.ARRIVING:
                # The rest of its body will not come; the proxy sees that `hello` does not list it.
                self._forget(run)
            elif run.kept is not None:
                run.detach()
            else:
                # A pause ends with its connection; the proxy pauses the run again where it must.
                run.resume()

    # Called by the worker

    @property
    def is_waiting_for_engine(self) -> bool:
        """True if at least one run waits for the engine and not for the receiver of its output."""
        return any(run.waits_for_engine for run in self._runs.values())

    async def drain(self, seconds: float) -> None:
        """Refuse new jobs, hand back runs that have not begun, and let the others finish.

        After `seconds`, runs without output are handed back and runs with output end as lost.
        """
        self._refuse_new_jobs()
        for run in list(self._runs.values()):
            if run.phase in NOT_BEGUN:
                self._stop(run, run.end("released", "drained", "the worker is draining"))
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            for run in list(self._runs.values()):
                if run.phase is not Phase.ANSWERING:
                    self._stop(run, run.end("released", "drained", "the worker is draining"))
            await self.lose_all("worker_stopped", "the worker stopped before the job was finished")

    async def lose_all(self, code: str, message: str) -> None:
        """End every run as lost, and wait up to `STOP_SECONDS` for the engine to release them."""
        self._refuse_new_jobs()
        for run in list(self._runs.values()):
            self._stop(run, run.end("lost", code, message))
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        if tasks:
            _, unresponsive = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in unresponsive:
                task.cancel()

    def _refuse_new_jobs(self) -> None:
        """Withdraw the credit before any run ends, so that a returned job does not come back."""
        if self._is_draining:
            return
        self._is_draining = True
        for outbox in self._outboxes:
            outbox.put(self.credit(outbox))

    # The life of a run

    def _accept(self, origin: Outbox, job: Job) -> None:
        held = self._runs.get(job.job)
        if held is not None and held.job.attempt >= job.attempt:
            return
        if held is not None:
            self._replace(held)
        features = self._features.get(origin, ())
        run = Run(
            job,
            origin,
            kept=ResendBuffer() if RESEND in features else None,
            knows_fields=FIELDS in features,
        )
        self._ended.confirm(job.job)
        self._runs[job.job] = run
        self._idle.clear()
        refusal = self._refusal(job)
        if refusal is not None:
            self._finish(run, run.end(*refusal))
        elif job.size == 0:
            self._start(run)

    def _refusal(self, job: Job) -> tuple[Ending, str, str] | None:
        held = sum(run.job.light == job.light for run in self._runs.values())
        if self._is_draining:
            return "released", "drained", "the worker is draining"
        if held > (LIGHT_SLOTS if job.light else self._slots):
            return "released", "no_slot", "every slot of the worker is occupied"
        if job.size > BODY_MAX_BYTES:
            message = f"the request body exceeds the worker's limit of {BODY_MAX_BYTES} bytes"
            return "lost", "body_too_big", message
        return None

    def _add(self, run: Run, part: Body) -> None:
        if run.phase is not Phase.ARRIVING:
            return
        try:
            if run.add(part):
                self._start(run)
        except BadBodyError as error:
            self._finish(run, run.end("lost", "bad_body", str(error)))

    def _start(self, run: Run) -> None:
        run.advance(RunEvent.COMPLETE_BODY)
        run.task = self._group.create_task(self._run(run), name=f"run {run.job.job}")

    async def _run(self, run: Run) -> None:
        """Answer one job. Ends with its one `End` in every case."""
        run.advance(RunEvent.BEGIN)
        job, attempt = run.job.job, run.job.attempt
        self._log.debug("job.started", job=job, attempt=attempt, path=run.job.path)
        try:
            end = await self._answer(run)
        except asyncio.CancelledError:
            if run.verdict is None:
                raise
            end = run.verdict
        except (handler.EngineFailedError, handler.InputFailedError) as error:
            retry_after = error.retry_after if run.knows_fields else 0.0
            end = run.end("failed", error.code, str(error), retry_after)
        except handler.RunLostError as error:
            if self._engine.dead:
                self._refuse_new_jobs()
            end = run.end("lost", error.code, str(error))
        except Exception:  # noqa: BLE001 - task border: a bug fails this job, not the worker
            self._log.exception("job.broke", job=job, attempt=attempt)
            end = run.end("lost", "worker_error", INTERNAL_ERROR)
        self._log.debug("job.ended", job=job, attempt=attempt, ending=end.ending, code=end.code)
        self._finish(run, run.verdict or end)

    async def _answer(self, run: Run) -> End:
        if run.job.input:
            return await self._answer_input(run)

        def offer(piece: Head | Part) -> bool:
            is_sent = run.offer(run.frame(piece))
            self.moves += is_sent
            return is_sent

        async with aclosing(handler.Answer(self._engine, run.request(), offer)) as answer:
            async for piece in answer:
                while not offer(piece):
                    await run.wait_to_continue()
        return run.end("completed")

    async def _answer_input(self, run: Run) -> End:
        model = self._models[0].id if self._models else ""
        outputs = handler.answer_input(
            self._engine, self._gauges, run.request().body, model, self._output_format
        )
        run.flow.has_window = True
        async with aclosing(outputs) as answer:
            async for output in answer:
                self.moves += 1
                frame = frames.Output(
                    run.job.job, run.job.attempt, output.value, output.metrics, output.is_whole
                )
                while not run.offer(frame):
                    await run.wait_to_continue()
        return run.end("completed")

    def _stop(self, run: Run, verdict: End) -> None:
        """End a run by a decision outside the engine; the first decision counts."""
        if not run.advance(RunEvent.STOP):
            return
        run.verdict = verdict
        if run.task is not None:
            run.task.cancel()
        if run.phase is Phase.ENDED:
            # The task has not made its first step and never will.
            self._send_end(run, verdict)

    def _finish(self, run: Run, end: End) -> None:
        if run.advance(RunEvent.END):
            self._send_end(run, end)

    def _send_end(self, run: Run, end: End) -> None:
        if self._runs.get(run.job.job) is run:
            run.put(end)

    def _confirm(self, origin: Outbox, frame: Acknowledge) -> None:
        """Drop what the proxy has of a run, and continue the run after a lost connection."""
        run = self._runs.get(frame.job) or self._ended.get(frame.job)
        if run is None or run.job.attempt != frame.attempt or run.origin is not origin:
            return
        if frame.frames == ALL_FRAMES:
            if run.phase is Phase.ENDED:
                self._forget(run)
                self._forget_ended(frame.job)
            return
        try:
            run.attach(frame.frames)
        except OutputGoneError as error:
            end = run.end("lost", "output_lost", str(error))
            if run.phase is Phase.ENDED:
                run.put(end)
            else:
                self._stop(run, end)
        run.continue_if_possible()

    def _replace(self, old: Run) -> None:
        """End the older attempt of a job: the proxy has handed out a newer one."""
        end = old.end("released", "replaced")
        is_over = old.phase is Phase.ENDED
        old.origin.drop(old.job.job, old.job.attempt)
        self._forget(old)
        old.origin.put_in_lane(old.verdict or end)
        if is_over:
            return
        old.verdict = old.verdict or end
        if old.advance(RunEvent.STOP) and old.task is not None:
            old.task.cancel()

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.job.job) is run:
            del self._runs[run.job.job]
        self._note_idle()

    def _forget_ended(self, job: str) -> None:
        self._ended.confirm(job)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._runs and not self._ended.has_unconfirmed:
            self._idle.set()
