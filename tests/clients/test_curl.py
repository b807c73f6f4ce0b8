"""curl, as in the README and in scripts."""

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.process import worker
from pydantic import SecretStr

KEY = "open-sesame"
BASES = ("/v1", "/openai/v1", "/v2/default/openai/v1")
IDLE_TIMEOUT_SECONDS = 1.0


@asynccontextmanager
async def curl(
    url: str, request: dict[str, Any] | None = None, *flags: str
) -> AsyncIterator[Process]:
    """Run curl without its progress output."""
    command = shutil.which("curl")
    if command is None:
        pytest.skip("curl is not in PATH: apt install curl")
    body = ["-H", "Content-Type: application/json", "-d", json.dumps(request)] if request else []
    process = await asyncio.create_subprocess_exec(command, "-sS", *flags, url, *body, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def finish(process: Process) -> tuple[int | None, str]:
    """Return the exit status and the complete output."""
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize("base", BASES)
async def test_a_response_that_is_not_streamed(line: Line, base: str) -> None:
    async with curl(f"{line.proxy.url}{base}/chat/completions", chat(), "--fail") as process:
        status, text = await finish(process)
    assert status == 0
    assert json.loads(text)["choices"][0]["message"]["content"].endswith("hello 4 ")


async def test_a_stream_is_relayed_at_once_and_stops_with_curl(line: Line) -> None:
    request = chat(stream=True, max_tokens=100_000, seed=100_000)
    async with curl(f"{line.proxy.url}{CHAT}", request, "-N") as process:
        assert process.stdout is not None
        await process.stdout.readuntil(b"hello 1")
        assert await line.running() == 1
        process.terminate()
        await until(lambda: _is_idle(line), IDLE_TIMEOUT_SECONDS, "the engine is idle")


async def test_a_queued_stream_is_complete(proxy: Proxy) -> None:
    async with curl(f"{proxy.url}{CHAT}", chat(stream=True), "-N", "--fail") as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b": queued position=1\n"
        async with worker(proxy):
            status, text = await finish(process)
    events = [part for part in text.split("\n") if part and not part.startswith(":")]
    assert status == 0
    assert len(events) == 7
    assert events[-1] == "data: [DONE]"


async def test_an_error_has_its_status_and_code(line: Line) -> None:
    flags = ("-w", "\n%{http_code} %{content_type}")
    async with curl(
        f"{line.proxy.url}{CHAT}", chat(model="unknown", stream=True), *flags
    ) as process:
        status, text = await finish(process)
    body, _, end = text.partition("\n")
    assert (status, end) == (0, "404 application/json")
    assert json.loads(body)["error"]["code"] == "model_not_found"
    async with curl(
        f"{line.proxy.url}{CHAT}", chat(model="unknown"), "--fail-with-body"
    ) as process:
        status, text = await finish(process)
    assert (status, json.loads(text)["error"]["code"]) == (22, "model_not_found")


@pytest_asyncio.fixture(scope="module")
async def locked() -> AsyncIterator[Proxy]:
    """A proxy with an API key, and one worker."""
    async with serving(api_key=[SecretStr(f"team={KEY}")]) as proxy, worker(proxy):
        yield proxy


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("authorization", "status"),
    [(f"Bearer {KEY}", 200), (KEY, 200), (f"bearer {KEY}", 200), ("Bearer wrong", 401)],
)
async def test_a_key_is_accepted_with_and_without_bearer(
    locked: Proxy, base: str, authorization: str, status: int
) -> None:
    flags = ("-H", f"Authorization: {authorization}", "-o", "/dev/null", "-w", "%{http_code}")
    for request, path in ((chat(), "chat/completions"), (None, "models")):
        async with curl(f"{locked.url}{base}/{path}", request, *flags) as process:
            assert await finish(process) == (0, str(status))


async def _is_idle(line: Line) -> bool:
    return await line.running() == 0
