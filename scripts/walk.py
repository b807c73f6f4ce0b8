"""Count the project's modules that one request passes: `python scripts/walk.py [--list]`, in the
set-up's environment.

It runs a proxy and a worker in this process, sends chat calls and durable jobs over real sockets,
and notes the file of every line that is executed in the meantime. A module counts if at least one
of its lines is executed during each of `ROUNDS` requests, so that periodic work in the background
does not count, and neither does a coroutine that is only resumed because it awaits another one.
The modules of `proxy/` and `worker_vllm/` count, up to the engine: `MinimalEngine` stands in for
`worker_vllm/engine/vllm.py` and for vLLM behind it, and is not counted itself. Limits: 36 modules
for a streamed chat call, 50 for a durable job from `run` to the `status` that shows its output.
"""

import argparse
import asyncio
import json
import logging
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType, TracebackType
from typing import Any, Self, TypeAlias

import aiohttp
import structlog
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from proxy.app import compose  # noqa: E402 - the checkout's own code
from proxy.serving import listen, running  # noqa: E402
from proxy.settings import Settings  # noqa: E402
from worker_vllm.asgi import Receive, Scope, Send  # noqa: E402
from worker_vllm.channel.connection import Channel, ChannelTimeouts  # noqa: E402
from worker_vllm.channel.dial import Dialler, Handshake, Link  # noqa: E402
from worker_vllm.engine.base import MODELS_PATH, Reading, read_models  # noqa: E402
from worker_vllm.runtime import Runtime  # noqa: E402

COUNTED_FOLDERS = (f"{ROOT}/proxy/", f"{ROOT}/worker_vllm/")
# A module that only some requests need must be missing in at least one round.
ROUNDS = 30
CHAT_LIMIT, JOB_LIMIT = 36, 50
CHAT = {
    "model": "minimal",
    "stream": True,
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "hello"}],
}
JOB = {"input": {"prompt": "hello", "sampling_params": {"max_tokens": 5}}}
TOKENS = 5

TraceFunction: TypeAlias = Callable[[FrameType, str, object], Any]
"""See `sys.settrace`."""


class Recorder:
    """Notes the project's files of which a line is executed while it is on."""

    def __init__(self) -> None:
        self.files: set[str] | None = None

    def trace(self, frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        """Handle a call or a resumption of any Python function, in any thread."""
        # Lines are traced even while this recorder is off: a thread's loop that is called before a
        # request runs during the request too.
        return self._trace_line if frame.f_code.co_filename.startswith(COUNTED_FOLDERS) else None

    def _trace_line(self, frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        if event == "line" and self.files is not None:
            self.files.add(frame.f_code.co_filename)
        return self._trace_line

    async def during(self, request: Callable[[], Awaitable[None]]) -> set[str]:
        """Return the project's modules of which a line is executed during a request."""
        self.files = set()
        await request()
        files, self.files = self.files, None
        return {str(Path(file).relative_to(ROOT)) for file in files}


class MinimalEngine:
    """See `Engine`. Its app sends `TOKENS` tokens, each in its own turn of the event loop."""

    name = "minimal"
    authorization = ""
    slots = 4
    dead = False
    failure = ""

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        fields = json.loads(body) if body else {}
        is_stream = fields.get("stream", False)
        kind = "text/event-stream" if is_stream else "application/json"
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in _pieces(scope["path"], is_stream=is_stream):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def fields(self, path: str) -> frozenset[str]:  # noqa: ARG002 - there are no request models
        return frozenset()

    def routes(self) -> frozenset[str]:
        return frozenset({"/v1/chat/completions"})

    async def read(self) -> Reading | None:
        return None

    def progress(self) -> int | None:
        return None

    def kill(self) -> None:
        """Do nothing: no process was started."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: nothing was started."""


def _pieces(path: str, *, is_stream: bool) -> list[bytes]:
    """Return the body of the engine's response in the pieces in which it is sent."""
    if path == MODELS_PATH:
        return [json.dumps({"object": "list", "data": [{"id": "minimal"}]}).encode()]
    is_chat = path == "/v1/chat/completions"
    part = "delta" if is_stream else "message"
    choice = {part: {"content": "token "}} if is_chat else {"text": "token "}
    answer = json.dumps({"choices": [{"index": 0, **choice}]}).encode()
    if not is_stream:
        return [answer]
    return [b"data: " + answer + b"\n\n"] * TOKENS + [b"data: [DONE]\n\n"]


async def chat(http: aiohttp.ClientSession) -> None:
    """Send one streamed chat call and read it to its end."""
    async with http.post("/v1/chat/completions", json=CHAT) as response:
        text = await response.text()
        if not text.endswith("data: [DONE]\n\n"):
            sys.exit(f"The chat call failed: {text}")


async def job(http: aiohttp.ClientSession) -> None:
    """Submit one durable job and read its status until it is COMPLETED."""
    async with http.post("/v2/default/run", json=JOB) as response:
        job_id = (await response.json())["id"]
    while True:
        async with http.get(f"/v2/default/status/{job_id}") as response:
            status = (await response.json())["status"]
        if status == "COMPLETED":
            return
        if status not in {"IN_QUEUE", "IN_PROGRESS"}:
            sys.exit(f"The job is {status}.")


async def walk(recorder: Recorder) -> dict[str, set[str]]:
    """Return the modules of both kinds of request."""
    with TemporaryDirectory() as folder:
        values: dict[str, Any] = {"port": 0, "data_dir": Path(folder)}
        settings = Settings(**values)
        parts = compose(settings)
        listener = listen(settings)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        engine = MinimalEngine()
        async with (
            running(parts, listener),
            engine,
            aiohttp.ClientSession(f"http://{address}") as http,
            asyncio.TaskGroup() as group,
        ):
            models = await read_models(engine)
            runtime = Runtime("walk", engine, models, 4, group)
            link = Link(f"ws://{address}/v2/default/worker", parts.token, "walk")
            dialler = Dialler(Handshake, random.uniform)
            channel = Channel(link, runtime, ChannelTimeouts(5.0), dialler)
            connecting = group.create_task(channel.run())
            await channel.connected.wait()
            found: dict[str, set[str]] = {}
            for name, send in (("chat call", chat), ("durable job", job)):
                await send(http)
                rounds = [await recorder.during(partial(send, http)) for _ in range(ROUNDS)]
                found[name] = set.intersection(*rounds)
            await runtime.lose_all("walk_over", "")
            connecting.cancel()
        return found


def main() -> None:
    """Print the counts; exit with 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="walk", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the modules too")
    wants_list = parser.parse_args().list
    # Otherwise structlog prints the debug lines of every job between the results.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    recorder = Recorder()
    threading.settrace(recorder.trace)
    sys.settrace(recorder.trace)
    begun = time.monotonic()
    found = uvloop.run(walk(recorder))
    sys.settrace(None)
    limits = {"chat call": CHAT_LIMIT, "durable job": JOB_LIMIT}
    for name, files in found.items():
        print(f"{name}: {len(files)} modules (limit {limits[name]})")
        if wants_list:
            print("".join(f"  {file}\n" for file in sorted(files)), end="")
    print(f"{ROUNDS} rounds of each in {time.monotonic() - begun:.1f} s")
    sys.exit(any(len(files) > limits[name] for name, files in found.items()))


if __name__ == "__main__":
    main()
