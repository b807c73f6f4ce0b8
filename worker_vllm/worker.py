"""The life of a worker: load the engine, connect, run jobs, drain, close, exit."""

import asyncio
import os
import random
import secrets
import signal
import time
from collections.abc import Coroutine, Sequence

import structlog
import uvloop

from proxy.wire.frames import Log
from worker_vllm.channel.connection import (
    CLOSE_CODE_GOING_AWAY,
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

CLOSE_CODE_INTERNAL_ERROR = 1011
# Time that the loading connection is kept while the worker's own connection is opened.
TAKEOVER_SECONDS = 5.0
# Random bytes that tell this process from another one with the same id.
INSTANCE_BYTES = 8


def run(settings: Settings, arguments: Sequence[str]) -> Ended:
    """Serve a proxy until the worker ends. `arguments` are flags for vLLM.

    Raises `SettingsError` if the settings do not name a proxy.
    """
    link = _link(settings)
    _let_signals_interrupt()
    loading = Loading(link, settings.engine_kind, _timeouts(settings), _dialler())
    try:
        loading.start()
        ended = uvloop.run(_work(settings, arguments, link, loading))
    except (asyncio.CancelledError, _InterruptError):
        # A signal from the operator or from `loading`.
        ended = Ended(EX_OK)
    finally:
        loading.close()
    return ended if loading.failure is None else _refused(loading.failure)


class _InterruptError(SystemExit):
    """A signal while the engine loads.

    It is not a KeyboardInterrupt, because vLLM suppresses those during its start.
    """


def _let_signals_interrupt() -> None:
    """Let a signal end the worker by an exception until the engine is ready.

    Later `_StopSignal` handles signals. Loading vLLM blocks the event loop for minutes, so a signal
    that arrives while the loop's task runs raises in it. An exception in the loop itself would
    break the loop; there the task is cancelled instead.
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
    """Set by the first SIGTERM or SIGINT. The second one ends the process at once."""

    def install(self, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle, engine)

    def _handle(self, engine: Engine) -> None:
        if self.is_set():
            engine.kill()
            os._exit(EX_FAILED)
        self.set()


async def _work(
    settings: Settings, arguments: Sequence[str], link: Link, loading: Loading
) -> Ended:
    """Load the engine, serve the proxy until the worker ends, and stop the engine."""
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
                return await _serve(settings, engine, link, loading, stop)
    except EngineError as error:
        return Ended(EX_FAILED, str(error))


async def _serve(
    settings: Settings, engine: Engine, link: Link, loading: Loading, stop: _StopSignal
) -> Ended:
    """Connect to the proxy with an engine that is ready, and run jobs until the worker ends."""
    models = await read_models(engine)
    slots = settings.max_concurrency or engine.slots
    structlog.get_logger().info(
        "engine.ready", engine=engine.name, models=[model.id for model in models], slots=slots
    )
    async with asyncio.TaskGroup() as group:
        runtime = Runtime(
            settings.id, engine, models, slots, group, settings.output_format, link.instance
        )
        channel = Channel(
            link,
            runtime,
            _timeouts(settings),
            _dialler(),
            was_accepted=loading.was_accepted,
        )
        loading.retire()
        connecting = group.create_task(_connect(channel))
        await _wait_for_first(channel.connected.wait(), connecting, TAKEOVER_SECONDS)
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
    """Wait for the first cause that ends the worker, then end its jobs and its connection."""
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
        await channel.close(CLOSE_CODE_INTERNAL_ERROR, gone.code)
        engine.kill()
        return Ended(EX_SOFTWARE, f"{gone.message}; restart the worker")
    if connecting.done():
        await runtime.lose_all("worker_stopped", "the worker lost the connection to its proxy")
        return connecting.result()
    structlog.get_logger().info("worker.draining", seconds=settings.drain_seconds)
    await runtime.drain(settings.drain_seconds)
    await channel.close(CLOSE_CODE_GOING_AWAY, "drained")
    return Ended(EX_OK)


async def _connect(channel: Channel) -> Ended:
    try:
        await channel.run()
    except (DialRefusedError, OrphanedError) as failure:
        return _refused(failure)
    return Ended(EX_OK)


def _refused(failure: DialRefusedError | OrphanedError) -> Ended:
    code = EX_CONFIG if isinstance(failure, DialRefusedError) else EX_UNAVAILABLE
    return Ended(code, str(failure))


async def _wait_for_first(
    signal_wait: Coroutine[None, None, bool], task: "asyncio.Task[Ended]", seconds: float
) -> None:
    waiting = asyncio.create_task(signal_wait)
    await asyncio.wait({waiting, task}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _link(settings: Settings) -> Link:
    instance = secrets.token_hex(INSTANCE_BYTES)
    return Link(settings.worker_url, settings.worker_token, settings.id, instance)


def _dialler() -> Dialler:
    return Dialler(Handshake, random.uniform)


def _timeouts(settings: Settings) -> ChannelTimeouts:
    return ChannelTimeouts(settings.heartbeat_seconds, settings.orphan_seconds)
