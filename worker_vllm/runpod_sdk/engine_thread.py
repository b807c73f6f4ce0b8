"""An engine in a thread with an event loop of its own, because the SDK brings its own loop and starts it late.

The engine is ready before the SDK asks for a job, outlives its loop, and whatever the SDK does with that loop cannot
hold up vLLM. One piece of output at a time crosses the border, when it is asked for: that is the back-pressure.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
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
from worker_vllm.handler import RunLostError
from worker_vllm.inputs.answering import answer_input
from worker_vllm.inputs.gauges import Gauges
from worker_vllm.inputs.rendering import Output
from worker_vllm.log import stage_log
from worker_vllm.settings import Settings

Value = TypeVar("Value")


class EngineThread:
    """Start it, have it answer inputs from any other loop, close it."""

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
        self._waiting = 0  # answers that wait for their next piece
        self.moves = 0
        self.slots = 0

    @property
    def is_waiting_for_engine(self) -> bool:
        return self._waiting > 0

    def start(self) -> None:
        """Load the engine, which may take minutes; `EngineError` if it does not start."""
        self._thread.start()
        self._ready.result()

    def close(self) -> None:
        """Stop the engine and wait for its end."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    async def answer(self, raw: bytes) -> AsyncIterator[Output]:
        """The outputs of a job's input, in the caller's loop. See `answer_input`.

        They end with the caller's task: the SDK drops the generator of a job that it stops, and closes it nowhere.
        """
        answer = _Answer(self, self._outputs(raw))
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine's body
        task.add_done_callback(lambda _: self._send(answer.close()))
        try:
            while (output := await self._ask(answer.next())) is not None:
                yield output
        finally:
            await self._ask(answer.close())

    async def _outputs(self, raw: bytes) -> AsyncIterator[Output]:
        assert self._engine is not None  # noqa: S101 - it has started
        assert self._gauges is not None  # noqa: S101
        form = self._settings.output_format
        try:
            async for output in answer_input(self._engine, self._gauges, raw, self._model, form):
                self.moves += 1
                yield output
        except RunLostError:
            if self._engine.dead:
                await (
                    asyncio.Event().wait()
                )  # this process ends at once; a job without an answer is run again
            raise

    async def _ask(self, what: Coroutine[Any, Any, Value]) -> Value:
        return await asyncio.wrap_future(self._send(what))

    def _send(self, what: Coroutine[Any, Any, Value]) -> Future[Value]:
        assert self._loop is not None  # noqa: S101 - it has started
        return asyncio.run_coroutine_threadsafe(what, self._loop)

    def _main(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
                return
            structlog.get_logger().exception("engine.broke")
            _exit_now()
            raise

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        stage = stage_log(time.monotonic())
        async with make_engine(self._settings, self._arguments, stage) as engine:
            models = await read_models(engine)
            if not models:
                raise EngineError("the engine serves no model")
            self._loop, self._engine = asyncio.get_running_loop(), engine
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
        assert self._stop is not None  # noqa: S101 - made by the caller
        watching = asyncio.create_task(watch(engine, self, self._settings.progress_seconds))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            gone = watching.result()
            structlog.get_logger().error("engine.gone", code=gone.code, reason=gone.message)
            _exit_now()
        watching.cancel()


def _exit_now() -> None:
    """End the process, and the SDK's process that pings: it would go on telling that all is well."""
    kill_children()
    os._exit(EX_SOFTWARE)


class _Answer:
    """One answer in the engine's loop. Its piece that is under way ends before the rest is closed."""

    def __init__(self, thread: EngineThread, outputs: AsyncIterator[Output]) -> None:
        self._thread = thread
        self._outputs = outputs
        self._step: asyncio.Task[Any] | None = None
        self._is_closed = False

    async def next(self) -> Output | None:
        self._step = asyncio.current_task()
        self._thread._waiting += 1  # noqa: SLF001 - two halves of one thing
        try:
            return await anext(self._outputs, None)
        finally:
            self._thread._waiting -= 1  # noqa: SLF001
            self._step = None

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        step = self._step
        if step is not None:
            step.cancel()
            await asyncio.wait({step})
        await self._outputs.aclose()  # type: ignore[attr-defined]
