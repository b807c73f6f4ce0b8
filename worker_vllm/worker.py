"""A worker from start to end: load the engine, connect, work; then stop taking, finish or hand back, close, exit."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Coroutine, Sequence

import structlog
import uvloop

from proxy.wire.frames import Log
from worker_vllm.channel.connection import (
    GOING_AWAY,
    Channel,
    ChannelTimeouts,
    OrphanedError,
)
from worker_vllm.channel.dial import Dialler, DialRefusedError, Handshake, Link
from worker_vllm.channel.loading import Loading
from worker_vllm.ending import EX_CONFIG, EX_FAILED, EX_OK, EX_SOFTWARE, EX_UNAVAILABLE, Ended
from worker_vllm.engine.base import Engine, EngineError, read_models
from worker_vllm.engine.choice import make_engine
from worker_vllm.engine.metrics import serve_metrics
from worker_vllm.engine.watchdog import watch
from worker_vllm.log import stage_log
from worker_vllm.runtime import Runtime
from worker_vllm.settings import Settings

INTERNAL_ERROR = 1011
TAKE_OVER_SECONDS = (
    5.0  # how long the loading connection is kept while the worker's own one is being made
)


def run(settings: Settings, arguments: Sequence[str]) -> Ended:
    """Work for a proxy; `arguments` are flags for vLLM. `SettingsError` if there is no proxy to work for."""
    link = _link(settings)
    _let_signals_interrupt()
    loading = Loading(link, settings.engine_kind, _patience(settings), _dialler())
    try:
        loading.start()
        ended = uvloop.run(_work(settings, arguments, loading))
    except (asyncio.CancelledError, _InterruptError):  # by a person, or by `loading`
        ended = Ended(EX_OK)
    finally:
        loading.close()
    return ended if loading.failure is None else _refused(loading.failure)


class _InterruptError(SystemExit):
    """A signal while the engine loads. No KeyboardInterrupt: vLLM swallows those in the middle of its start."""


def _let_signals_interrupt() -> None:
    """Until the engine is ready, a signal ends the worker by an exception; later `_StopSignal` takes over.

    Loading vLLM blocks the loop for minutes, so where the loop's task runs, the signal breaks into it. Where the loop
    itself runs, an exception would break the loop: there the task is cancelled.
    """
    loop, task = _running_task()

    def interrupt(number: int, _: object) -> None:
        if loop is None or task is None or asyncio.current_task(loop) is task:
            raise _InterruptError(signal.Signals(number).name)
        loop.call_soon_threadsafe(task.cancel)

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)


def _running_task() -> (
    tuple[asyncio.AbstractEventLoop, "asyncio.Task[Ended] | None"] | tuple[None, None]
):
    try:
        return asyncio.get_running_loop(), asyncio.current_task()
    except RuntimeError:
        return None, None


class _StopSignal(asyncio.Event):
    """Set by the first SIGTERM or SIGINT; the second ends the process at once."""

    def install(self, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._come, engine)

    def _come(self, engine: Engine) -> None:
        if self.is_set():
            engine.kill()
            os._exit(EX_FAILED)
        self.set()


async def _work(settings: Settings, arguments: Sequence[str], loading: Loading) -> Ended:
    """Load the engine, work until something ends it, stop the engine."""
    _let_signals_interrupt()
    log_stage = stage_log(time.monotonic())

    def stage(text: str) -> None:
        log_stage(text)
        loading.say(text)

    try:
        async with make_engine(settings, arguments, stage) as engine:
            stop = _StopSignal()
            stop.install(engine)
            async with serve_metrics(engine.app, settings.metrics_port):
                return await _serve(settings, engine, loading, stop)
    except EngineError as error:
        return Ended(EX_FAILED, str(error))


async def _serve(settings: Settings, engine: Engine, loading: Loading, stop: _StopSignal) -> Ended:
    """Work with an engine that is ready."""
    models = await read_models(engine)
    slots = settings.max_concurrency or engine.slots
    structlog.get_logger().info(
        "engine.ready", engine=engine.name, models=[model.id for model in models], slots=slots
    )
    async with asyncio.TaskGroup() as group:
        runtime = Runtime(settings.id, engine, models, slots, group, settings.output_format)
        link, patience = _link(settings), _patience(settings)
        was_accepted = loading.was_accepted
        channel = Channel(link, runtime, patience, _dialler(), was_accepted=was_accepted)
        loading.retire()
        connecting = group.create_task(_connect(channel))
        await _first(channel.connected.wait(), connecting, TAKE_OVER_SECONDS)
        await asyncio.to_thread(loading.close)
        ended = await _until_end(settings, engine, runtime, channel, connecting, stop)
        connecting.cancel()
        return ended


async def _until_end(
    settings: Settings,
    engine: Engine,
    runtime: Runtime,
    channel: Channel,
    connecting: "asyncio.Task[Ended]",
    stop: _StopSignal,
) -> Ended:
    """Wait for the first thing that ends the worker, and end its jobs and its connection accordingly."""
    watching = asyncio.create_task(watch(engine, runtime, settings.progress_seconds))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({connecting, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        watching.cancel()
    if watching.done():
        gone = watching.result()
        structlog.get_logger().error("engine.gone", code=gone.code, reason=gone.message)
        channel.say(Log(gone.message))
        await runtime.lose_all(gone.code, gone.message)
        await channel.close(INTERNAL_ERROR, gone.code)
        engine.kill()
        return Ended(EX_SOFTWARE, f"{gone.message}: the worker must be started again")
    if connecting.done():
        await runtime.lose_all("worker_stopped", "the worker lost its proxy")
        return connecting.result()
    structlog.get_logger().info("worker.draining", seconds=settings.drain_seconds)
    await runtime.drain(settings.drain_seconds)
    await channel.close(GOING_AWAY, "drained")
    return Ended(EX_OK)


async def _connect(channel: Channel) -> Ended:
    try:
        await channel.run()
    except (DialRefusedError, OrphanedError) as failure:
        return _refused(failure)
    return Ended(EX_OK)


def _refused(failure: DialRefusedError | OrphanedError) -> Ended:
    return Ended(
        EX_CONFIG if isinstance(failure, DialRefusedError) else EX_UNAVAILABLE, str(failure)
    )


async def _first(
    signal_wait: Coroutine[None, None, bool], task: "asyncio.Task[Ended]", seconds: float
) -> None:
    waiting = asyncio.create_task(signal_wait)
    await asyncio.wait({waiting, task}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _link(settings: Settings) -> Link:
    return Link(settings.worker_url, settings.worker_token, settings.id)


def _dialler() -> Dialler:
    return Dialler(Handshake, random.uniform)


def _patience(settings: Settings) -> ChannelTimeouts:
    return ChannelTimeouts(settings.heartbeat_seconds, settings.orphan_seconds)
