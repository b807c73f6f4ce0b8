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
from harness.data import responses
from harness.proxy.client_process import Client, client
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.tools.environments import node_command, python
from harness.tools.waiting import until
from harness.worker.process import worker
from harness.worker.puppet import puppet

from proxy.jobs.model import EndpointId
from proxy.wire.frames import Chunk, End, Head, Job

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
RESPONSE = {"model": "small", "input": "hi", "stream": True}
KEEPALIVE = b"event: keepalive\n"
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


@pytest_asyncio.fixture(scope="module")
async def silent() -> AsyncIterator[Proxy]:
    """A proxy that sends a heartbeat at each opportunity once a job runs, and none before."""
    async with serving(heartbeat_silent=0.01, heartbeat_first=30.0) as proxy:
        yield proxy


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
    result = await other.call(url, chat(**LONG), seconds=0.5)
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
                assert await beside.content.readline() == b":No worker is connected.\n"
            async with worker(proxy):
                result = await call
                await beside.read()
    assert result == {"text": "hello 0 hello 1 ", "finish": "length", "events": 3}


@pytest.mark.parametrize("helper", [False, True])
async def test_a_response_survives_a_long_prefill(
    silent: Proxy, other: Client, helper: bool
) -> None:
    """The same heartbeats go to the client and to a second connection, which sees them."""
    async with (
        puppet(silent, slots=2) as engine,
        silent.http.post("/v1/responses", json=RESPONSE) as beside,
    ):
        jobs = [await engine.job()]
        call = asyncio.create_task(other.call(f"{silent.url}/v1", RESPONSE, helper=helper))
        jobs.append(await engine.job())
        for job in jobs:
            await engine.say(Head(*job_of(job), 200, "text/event-stream"))
            await engine.say(Chunk(*job_of(job), responses.beginning()))
        await beside.content.readuntil(KEEPALIVE)
        rest = responses.tokens("hello") + responses.end("hello")
        for job in jobs:
            await engine.say(Chunk(*job_of(job), rest), End(*job_of(job), "completed"))
        result = await call
    assert (result["text"], result["types"][-1]) == ("hello", "response.completed"), result
    assert "error" not in result


@pytest.mark.parametrize("helper", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_failed_response_names_its_reason(
    silent: Proxy, other: Client, begun: bool, helper: bool
) -> None:
    """Clients for Python yield both events. The one for Node raises an exception at the first."""
    async with puppet(silent, slots=1) as engine:
        call = asyncio.create_task(other.call(f"{silent.url}/v1", RESPONSE, helper=helper))
        for _ in range(1 if begun else 3):
            job = await engine.job()
            if begun:
                await engine.say(Head(*job_of(job), 200, "text/event-stream"))
                await engine.say(Chunk(*job_of(job), responses.beginning()))
                await until(lambda: all(one.left for one in silent.parts.interactive))
            await engine.say(End(*job_of(job), "lost", "engine_dead", "the engine died"))
        result = await call
    assert result["code"] == ("engine_dead" if begun else "gave_up")
    if "failed" in result:
        assert result["failed"]["code"] == "invalid_prompt"
        assert (result["failed"]["id"] == responses.ID) is begun
        assert result["types"][0] == "response.created"
    else:
        assert result["error"] == "APIError"
        assert "the engine died" in result["says"]


def job_of(job: Job) -> tuple[str, int]:
    return job.job, job.attempt


async def _is_idle(line: Line) -> bool:
    return await line.running() == 0
