"""An engine in a thread with its own event loop, because the SDK creates a loop of its own, late.

The engine is ready before the SDK requests a job, it outlives the SDK's loop, and the SDK cannot
block vLLM's loop. Output is passed between the loops one piece at a time, when it is requested,
which gives back-pressure.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog
import uvloop

from worker_vllm.ending import EX_SOFTWARE
from worker_vllm.engine.base import Engine, EngineError, read_models
from worker_vllm.engine.choice import make_engine
from worker_vllm.engine.metrics import serve_metrics
from worker_vllm.engine.processes import kill_children
from worker_vllm.engine.watchdog import watch
from worker_vllm.handler import InputFailedError, RunLostError, answer_input
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.inputs.rendering import Output
from worker_vllm.log import stage_log
from worker_vllm.run import INTERNAL_ERROR
from worker_vllm.settings import Settings

Value = TypeVar("Value")


class EngineThread:
    """An engine that answers inputs from any other event loop, between `start` and `close`."""

    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        self._settings = settings
        self._arguments = arguments
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._ready: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._engine: Engine | None = None
        self._gauges: Gauges | None = None
        self._model = ""
        # Number of answers that wait for their next piece of output.
        self.waiting_answers = 0
        self.moves = 0
        self.slots = 0

    @property
    def is_waiting_for_engine(self) -> bool:
        return self.waiting_answers > 0

    def start(self) -> None:
        """Load the engine, which may take minutes. Raises `EngineError` if it does not start."""
        self._thread.start()
        self._ready.result()

    def close(self) -> None:
        """Stop the engine and wait until the thread has ended."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def answer(self, raw: bytes) -> AsyncGenerator[Output, None]:
        """Yield the outputs of a job's input, in the caller's loop. See `answer_input`.

        The answer is closed when the caller's task ends, because the SDK discards the generator of
        a job that it stops without closing it.
        """
        answer = _Answer(self, self._outputs(raw))
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        task.add_done_callback(lambda _: self._submit(answer.close()))
        try:
            while True:
                output = await self._run_in_thread(answer.next())
                if output is None:
                    break
                yield output
        finally:
            await self._run_in_thread(answer.close())

    async def _outputs(self, raw: bytes) -> AsyncGenerator[Output, None]:
        assert self._engine is not None  # noqa: S101 - the engine has started
        assert self._gauges is not None  # noqa: S101
        form = self._settings.output_format
        try:
            async for output in answer_input(self._engine, self._gauges, raw, self._model, form):
                self.moves += 1
                yield output
        except RunLostError:
            if self._engine.dead:
                # The process is about to end; a job without an answer is run again.
                await asyncio.Event().wait()
            raise
        except InputFailedError:
            raise
        except Exception:  # a bug fails this job; the SDK would send its traceback to the client
            log = structlog.get_logger()
            log.exception("job.broke")
            raise RunLostError("worker_error", INTERNAL_ERROR) from None

    async def _run_in_thread(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        return await asyncio.wrap_future(self._submit(coroutine))

    def _submit(self, coroutine: Coroutine[Any, Any, Value]) -> Future[Value]:
        assert self._loop is not None  # noqa: S101 - the engine has started
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _main(self) -> None:
        try:
            error = uvloop.run(self._supervise())
        except (SystemExit, KeyboardInterrupt, OSError, RuntimeError) as raised:
            # asyncio does not store the first two in a task, and the loop itself raises the others.
            error = raised
        if error is None:
            return
        if not self._ready.done():
            self._ready.set_exception(error)
            return
        structlog.get_logger().error("engine.broke", exc_info=error)
        _exit_now()

    async def _supervise(self) -> BaseException | None:
        """Serve until `close`; return the exception that ended the engine, if any."""
        (error,) = await asyncio.gather(self._serve(), return_exceptions=True)
        return error

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        stage = stage_log(time.monotonic())
        async with make_engine(self._settings, self._arguments, stage) as engine:
            models = await read_models(engine)
            if not models:
                raise EngineError("the engine does not serve a model")
            self._loop = asyncio.get_running_loop()
            self._engine = engine
            self._gauges = Gauges(engine.read, self._loop.time)
            self._model = models[0].id
            self.slots = self._settings.max_concurrency or engine.slots
            async with serve_metrics(engine.app, self._settings.metrics_port):
                structlog.get_logger().info(
                    "engine.ready", engine=engine.name, model=self._model, slots=self.slots
                )
                self._ready.set_result(None)
                await self._until_stop(engine)

    async def _until_stop(self, engine: Engine) -> None:
        assert self._stop is not None  # noqa: S101 - the caller has created it
        watching = asyncio.create_task(watch(engine, self, self._settings.progress_seconds))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            gone = watching.result()
            structlog.get_logger().error("engine.gone", code=gone.code, reason=gone.message)
            _exit_now()
        watching.cancel()


def _exit_now() -> None:
    """End the process and the SDK's ping process, which would still report a healthy worker."""
    kill_children()
    os._exit(EX_SOFTWARE)


class _Answer:
    """An answer in the engine's loop. `close` cancels a pending `next` before it ends the rest."""

    def __init__(self, thread: EngineThread, outputs: AsyncGenerator[Output, None]) -> None:
        self._thread = thread
        self._outputs = outputs
        self._step: asyncio.Task[Any] | None = None
        self._is_closed = False

    async def next(self) -> Output | None:
        self._step = asyncio.current_task()
        self._thread.waiting_answers += 1
        try:
            return await anext(self._outputs, None)
        finally:
            self._thread.waiting_answers -= 1
            self._step = None

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        step = self._step
        if step is not None:
            step.cancel()
            await asyncio.wait({step})
        await self._outputs.aclose()
