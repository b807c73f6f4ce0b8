"""Pass the handler to `runpod.serverless.start`, once the engine is ready.

The SDK streams every value that a generator yields, and returns the list of all values as the job's
output. In the modes in which it cannot run a generator (`--test_input`, realtime) the handler
returns the whole output.
"""

import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from importlib.util import find_spec
from typing import Any

from worker_vllm.ending import EX_FAILED, EX_OK, Ended
from worker_vllm.engine.base import EngineError
from worker_vllm.engine.processes import kill_children
from worker_vllm.handler import InputFailedError, RunLostError
from worker_vllm.inputs.rendering import Output
from worker_vllm.runpod_sdk.engine_thread import EngineThread
from worker_vllm.runpod_sdk.flags import Mode, Wish
from worker_vllm.settings import Settings

NO_SDK_MESSAGE = (
    "the Runpod SDK is requested, but `runpod` is not installed. "
    "Install it with: pip install 'runpod>=1.10,<2'"
)


def run(settings: Settings, wish: Wish) -> Ended:
    """Run under the SDK until it ends.

    It ends by itself in its local modes, and after a SIGTERM when its jobs are finished.
    """
    if find_spec("runpod") is None:
        return Ended(EX_FAILED, NO_SDK_MESSAGE)
    # The SDK pings from a process of its own. This process has threads, so a fork is not safe.
    multiprocessing.set_start_method("spawn", force=True)
    thread = EngineThread(settings, wish.engine)
    # These handlers are active while the engine loads; later the SDK installs its own.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        thread.start()
    except EngineError as error:
        return Ended(EX_FAILED, str(error))
    sys.argv = [sys.argv[0], *wish.sdk]
    handler = _call(thread) if wish.mode is Mode.CALL else _stream(thread)
    config = {
        "handler": handler,
        "return_aggregate_stream": True,
        "concurrency_modifier": lambda _: thread.slots,
    }
    try:
        importlib.import_module("runpod").serverless.start(config)
    except SystemExit as ended:
        # The local modes of the SDK end like this.
        return Ended(ended.code if isinstance(ended.code, int) else EX_FAILED)
    finally:
        thread.close()
    return Ended(EX_OK)


def _exit(_: int, __: object) -> None:
    """End a process whose engine still loads.

    No job has been taken yet, and loading cannot be interrupted from here.
    """
    kill_children()
    os._exit(EX_OK)


def _stream(thread: EngineThread) -> Callable[[dict[str, Any]], AsyncIterator[Any]]:
    async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
        async with aclosing(thread.answer(_raw(job))) as answer:
            try:
                async for output in answer:
                    yield _streamed(output)
            except (InputFailedError, RunLostError) as error:
                yield {"error": _error(error)}

    return handler


def _call(thread: EngineThread) -> Callable[[dict[str, Any]], Any]:
    async def handler(job: dict[str, Any]) -> Any:
        try:
            outputs = [output async for output in thread.answer(_raw(job))]
        except (InputFailedError, RunLostError) as error:
            return {"error": _error(error)}
        values = [_streamed(output) for output in outputs]
        return values[0] if len(outputs) == 1 and outputs[0].is_whole else values

    return handler


def _raw(job: dict[str, Any]) -> bytes:
    return json.dumps(job.get("input")).encode()


def _streamed(output: Output) -> Any:
    """Return the value for the SDK, which cannot transport metrics separately."""
    value = json.loads(output.value)
    if output.metrics:
        return value | {"metrics": json.loads(output.metrics)}
    return value


def _error(error: InputFailedError | RunLostError) -> Any:
    """Return an error message.

    If the input named a route, return the error object of the worker-vllm image instead, which
    contains the status and the body of the engine's response.
    """
    if isinstance(error, InputFailedError) and error.body:
        message = f"vLLM returned HTTP {error.status}: {error.body}"
        return {"message": message, "type": "worker_error", "code": None}
    return str(error)
