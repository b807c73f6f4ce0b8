"""The same requests to vLLM's own server and to the proxy yield the same responses."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from harness.proxy.server import CHAT
from harness.proxy.shared import Real
from harness.tools.ports import free_port
from harness.tools.waiting import until
from harness.worker.real_vllm import START_SECONDS, ask

from worker_vllm.engine.vllm import DEMO_FLAGS, DEMO_FOLDER

pytestmark = [pytest.mark.torture, pytest.mark.timeout(START_SECONDS * 2)]

# The demo's variables as flags.
FLAGS = [
    f"--{name.lower().replace('_', '-')}{'' if on == 'true' else f'={on}'}"
    for name, on in DEMO_FLAGS.items()
]
ENTRY = "vllm.entrypoints.launchers.api_server.entry"
COMPLETIONS = "/v1/completions"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, ask(temperature=0)),
    (CHAT, ask("What is a lease?", temperature=0, logprobs=True, top_logprobs=2)),
    (
        CHAT,
        ask("What is the weather in Paris?", temperature=0, tools=[TOOL], tool_choice="required"),
    ),
    (CHAT, ask("What is 17 + 25?", temperature=0)),
    (CHAT, ask(temperature=0.7, seed=3, n=2)),
    (CHAT, ask(temperature=0, stop=["GPUs"], max_completion_tokens=100)),
    # Status 400 without `stream`.
    (CHAT, ask(temperature=0, stream_options={"include_usage": True})),
    (CHAT, ask(messages=[])),
    (CHAT, ask(messages=[{"role": "unknown"}])),
    (CHAT, ask(max_tokens=-1)),
    (CHAT, ask(n=100_000)),
    (CHAT, ask(temperature="hot")),
    (CHAT, ask(response_format={"type": "json_schema"})),
    # Without `model`.
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}),
    (CHAT, ask(stream="yes", temperature=0)),
    (CHAT, ask("x " * 5_000)),
    (
        COMPLETIONS,
        {"model": "demo", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0},
    ),
    (
        COMPLETIONS,
        {"model": "demo", "prompt": [[1, 2, 3]], "max_tokens": 3, "temperature": 0, "logprobs": 2},
    ),
    (COMPLETIONS, {"model": "demo"}),
]
# Fields that differ from call to call.
VOLATILE_FIELDS = ("id", "created", "system_fingerprint", "metrics")


@asynccontextmanager
async def plain_vllm() -> AsyncIterator[str]:
    """Run vLLM's own server with the demo model."""
    port = free_port()
    quiet = asyncio.subprocess.DEVNULL
    variables = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
        "HF_HUB_OFFLINE": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", ENTRY, "--model", str(DEMO_FOLDER), "--port", str(port), *FLAGS),
        env=variables, stdout=quiet, stderr=quiet, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as http:
            await until(lambda: _is_healthy(http, url), START_SECONDS)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def _is_healthy(http: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError):
        async with http.get(f"{url}/health") as response:
            return response.status == 200
    return False


def stable(answer: Any) -> Any:
    """Return a response without `VOLATILE_FIELDS`."""
    if isinstance(answer, dict):
        return {
            name: stable(value) for name, value in answer.items() if name not in VOLATILE_FIELDS
        }
    return [stable(value) for value in answer] if isinstance(answer, list) else answer


async def whole(
    http: aiohttp.ClientSession, url: str, request: dict[str, Any]
) -> tuple[int, str, Any]:
    """Return the status, the content type and the stable content of a response."""
    async with http.post(url, json=request) as response:
        if response.content_type == "text/event-stream":
            return response.status, response.content_type, _joined(await response.read())
        return response.status, response.content_type, stable(await response.json())


def _joined(body: bytes) -> dict[str, Any]:
    """Return the texts and the end of a stream.

    The text of each event is not compared, because it depends on the load of the engine.
    """
    events = [
        event.removeprefix(b"data: ")
        for event in body.split(b"\n\n")
        if event.startswith(b"data: ")
    ]
    chunks = [json.loads(event) for event in events if event != b"[DONE]"]
    errors = [chunk["error"] for chunk in chunks if "error" in chunk]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    texts: dict[int, str] = {}
    for choice in choices:
        piece = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
        texts[choice["index"]] = texts.get(choice["index"], "") + piece
    ends = {
        choice["index"]: choice["finish_reason"]
        for choice in choices
        if choice.get("finish_reason")
    }
    return {"texts": texts, "ends": ends, "errors": stable(errors), "last": events[-1:]}


async def test_both_servers_respond_alike(real: Real) -> None:
    async with plain_vllm() as plain, aiohttp.ClientSession() as http:
        different = []
        for path, request in REQUESTS:
            for stream in ({}, {"stream": True}):
                body = request | (stream if "stream" not in request else {})
                theirs = await whole(http, plain + path, body)
                ours = await whole(http, real.proxy.url + path, body)
                if ours != theirs:
                    different.append((path, body, theirs, ours))
        assert not different
