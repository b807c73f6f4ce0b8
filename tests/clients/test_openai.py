"""OpenAI's clients for Python and Node, old and new, receive the same results.

Each runs in its own environment.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from harness.proxy.client_process import Client, client
from harness.proxy.server import CHAT, chat, serving
from harness.proxy.shared import Line
from harness.tools.environments import node_command, python
from harness.tools.waiting import until
from harness.worker.process import worker

from proxy.jobs.model import EndpointId

HERE = Path(__file__).parent
SCRIPT = str(HERE / "openai_client.py")
CLIENTS = {
    "openai 1": (".venv-openai1", "1."),
    "openai 1, async": (".venv-openai1", "1."),
    "openai 2": (".venv-openai2", "2."),
    "openai 2, async": (".venv-openai2", "2."),
    "openai for Node": (".node", "7."),
}
LONG: dict[str, Any] = {"max_tokens": 100_000, "seed": 2_000}
IDLE_TIMEOUT_SECONDS = 1.0
FULL = {"text": "hello 0 hello 1 hello 2 hello 3 hello 4 ", "finish": "length"}
USAGE = {"stream_options": {"include_usage": True}}
ERROR_EVENT = {"stream": True, "fault": "error_event:2"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "not streamed": ({}, FULL | {"tokens": 5}),
    "stream": ({"stream": True}, FULL | {"events": 6}),
    "stream with usage": ({"stream": True} | USAGE, FULL | {"events": 7, "tokens": 5}),
    "an unknown model": (
        {"model": "unknown"},
        {"error": "NotFoundError", "code": "model_not_found"},
    ),
    "an unknown model, as a stream": (
        {"model": "unknown", "stream": True},
        {"error": "NotFoundError", "status": 404},
    ),
    "a prompt that is too long": (
        {"max_tokens": 9_999_999},
        {"error": "BadRequestError", "status": 400},
    ),
    "an error event in a stream": (ERROR_EVENT, {"error": "APIError", "text": "hello 0 hello 1 "}),
    "an incomplete stream": (
        {"stream": True, "fault": "cut:2"},
        {"error": "APIError", "text": "hello 0 hello 1 "},
    ),
    "an incomplete response": (
        {"fault": "cut:2"},
        {"error": "InternalServerError", "code": "gave_up"},
    ),
}


@pytest_asyncio.fixture(scope="module", params=CLIENTS)
async def other(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client process that all tests with this client share."""
    folder, version = CLIENTS[request.param]
    variables: dict[str, str] = {}
    if folder == ".node":
        command, variables = node_command(HERE / "openai_client.cjs")
    else:
        command = [python(folder), str(HERE / "openai_client.py"), *request.param.split(", ")[1:]]
    async with client(command, variables) as running:
        assert running.version.startswith(version)
        yield running


@pytest.mark.parametrize("case", CASES)
async def test_every_client_receives_the_same_result(line: Line, other: Client, case: str) -> None:
    more, wanted = CASES[case]
    result = await other.call(f"{line.proxy.url}/v1", chat(**more))
    assert wanted.items() <= result.items(), result


@pytest.mark.parametrize("base", ["/openai/v1", "/v2/default/openai/v1"])
async def test_every_base_url_works(line: Line, other: Client, base: str) -> None:
    result = await other.call(f"{line.proxy.url}{base}", chat(stream=True))
    assert FULL.items() <= result.items(), result


async def test_closing_a_stream_frees_the_engine_and_the_client_can_continue(
    line: Line, other: Client
) -> None:
    url = f"{line.proxy.url}/v1"
    result = await other.call(url, chat(stream=True, **LONG), leaves=True)
    assert result["text"].startswith("hello 0 ")
    assert "error" not in result
    await until(lambda: _is_idle(line), IDLE_TIMEOUT_SECONDS, "the engine is idle")
    assert FULL.items() <= (await other.call(url, chat())).items()


async def test_every_call_that_was_read_to_the_end_is_completed(line: Line, other: Client) -> None:
    """Some clients close their connection as soon as they have read `[DONE]`."""
    before = await line.proxy.parts.view.counts(EndpointId("default"))
    for number in range(20):
        result = await other.call(
            f"{line.proxy.url}/v1", chat(stream=True) | (USAGE if number % 2 else {})
        )
        assert FULL.items() <= result.items(), result
    await until(lambda: not len(line.proxy.parts.interactive), what="the calls are over")
    after = await line.proxy.parts.view.counts(EndpointId("default"))
    assert after == replace(before, completed=before.completed + 20)


async def test_a_client_timeout_frees_the_engine_and_the_client_can_continue(
    line: Line, other: Client
) -> None:
    url = f"{line.proxy.url}/v1"
    result = await other.call(url, chat(**LONG), patience=0.5)
    assert result["error"] in {"APITimeoutError", "APIConnectionTimeoutError"}
    await until(lambda: _is_idle(line), IDLE_TIMEOUT_SECONDS, "the engine is idle")
    assert FULL.items() <= (await other.call(url, chat(stream=True))).items()


async def test_heartbeats_break_no_client(other: Client) -> None:
    async with serving(heartbeat_first=0.1, heartbeat_queued=0.1, heartbeat_silent=0.1) as proxy:
        call = asyncio.create_task(
            other.call(f"{proxy.url}/v1", chat(stream=True, max_tokens=2, seed=300_000))
        )
        await until(lambda: len(proxy.parts.interactive) == 1, what="the call waits")
        # The second call is behind the first in the queue.
        async with proxy.http.post(CHAT, json=chat(stream=True)) as beside:
            for _ in range(2):
                assert await beside.content.readline() == b": queued position=2\n"
            async with worker(proxy):
                result = await call
                await beside.read()
    assert result == {"text": "hello 0 hello 1 ", "finish": "length", "events": 3}


async def _is_idle(line: Line) -> bool:
    return await line.running() == 0
