"""Runpod's unmodified clients work with the proxy's URL. Go's requests are also replayed."""

import asyncio
import json
import os
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from harness.proxy.queue_api import QueueClient, long, prompt, said
from harness.proxy.server import Proxy, serving
from harness.runpod.sdk_worker import SDKS
from harness.tools.environments import node_command, python
from harness.tools.go import go_client
from harness.worker.process import worker

HERE = Path(__file__).parent
INPUTS = {
    "plain": prompt("plain"),
    "bad": prompt(tempo=1),
    "stream": prompt("piece", stream=True, max_tokens=5, seed=100_000),
    "slow": prompt("slow", max_tokens=20, seed=100_000),
    "long": long(),
}
PLAIN = {"text": ["plain 0 plain 1 plain 2 "], "input_tokens": 1, "output_tokens": 3}
PIECES = "".join(f"piece {number} " for number in range(5))


@pytest_asyncio.fixture(scope="module")
async def served() -> AsyncIterator[Proxy]:
    """A proxy with an API key, and one worker."""
    async with serving(api_key=["team=one"]) as proxy, worker(proxy):
        yield proxy


async def run_client(*command: str, **variables: str) -> dict[str, Any]:
    """Run a client with `INPUTS` on its standard input; return the result it prints."""
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | variables, stdin=PIPE, stdout=PIPE, limit=1 << 24
    )
    out, _ = await asyncio.wait_for(process.communicate(json.dumps(INPUTS).encode()), 90)
    [line] = [line for line in out.decode().splitlines() if line.startswith("RESULT ")]
    return dict(json.loads(line.removeprefix("RESULT ")))


async def python_client(proxy: Proxy, sdk: str, scenario: str) -> dict[str, Any]:
    command = (python(sdk), str(HERE / "runpod_client.py"), scenario)
    return await run_client(*command, RUNPOD_ENDPOINT_BASE_URL=f"{proxy.url}/v2")


@pytest.mark.parametrize("sdk", SDKS)
async def test_the_python_client(served: Proxy, sdk: str) -> None:
    found = await python_client(served, sdk, "sync")
    assert found["health"]["workers"]["ready"] == 1
    assert found["run_sync"] == found["output"] == PLAIN
    assert found["status"] == "COMPLETED"
    assert "".join(piece["text"][0] for piece in found["stream"]) == PIECES
    assert (found["run_sync_failing"], found["failing_output"], found["failing"]) == (
        None,
        None,
        "FAILED",
    )
    assert found["cancel"] == "CANCELLED"
    assert found["purge"]["status"] == "completed"
    assert "404" in found["nowhere"]
    assert found["wrong"].startswith("RuntimeError: 401 Unauthorized")


@pytest.mark.parametrize("sdk", SDKS)
async def test_the_asyncio_client(served: Proxy, sdk: str) -> None:
    found = await python_client(served, sdk, "asyncio")
    assert found["output"] == PLAIN
    assert found["status"] == "COMPLETED"
    assert "".join(piece["text"][0] for piece in found["stream"]) == PIECES
    assert found["cancel"] == "CANCELLED"
    assert found["purge"]["status"] == "completed"


@pytest.mark.parametrize("sdk", SDKS)
async def test_the_python_client_ends_the_stream_of_a_cancelled_job(
    served: Proxy, sdk: str
) -> None:
    assert "404" in (await python_client(served, sdk, "cancelled"))["ended"]


async def test_the_javascript_client(served: Proxy) -> None:
    command, variables = node_command(HERE / "runpod_client.cjs")
    found = await run_client(*command, f"{served.url}/v2", **variables)
    assert found["health"]["workers"]["ready"] == 1
    assert (
        found["runSync"]["output"]
        == found["statusSync"]["output"]
        == found["status"]["output"]
        == PLAIN
    )
    assert found["runSync"]["succeeded"] is True
    assert found["runSyncSlow"]["status"] in {"IN_PROGRESS", "COMPLETED"}
    assert found["run"]["status"] == "IN_QUEUE"
    assert said(found["stream"]) == PIECES
    assert found["cancel"]["status"] == "CANCELLED"
    assert found["purge"]["status"] == "completed"
    assert "404" in found["nonsense"]


@pytest.mark.timeout(300)
async def test_the_go_client(served: Proxy, tmp_path: Path) -> None:
    client = await asyncio.to_thread(go_client, HERE / "go", tmp_path)
    found = await run_client(client, f"{served.url}/v2")
    assert found["health"]["workers"]["ready"] == 1
    for call in ("runSync plain", "statusSync", "status"):
        assert (found[call]["status"], found[call]["output"]) == ("COMPLETED", PLAIN)
        assert found[call]["id"]
    assert found["runSync bad"]["status"] == "FAILED"
    assert "tempo" in found["runSync bad"]["error"]
    # The client polls the status a few times, for four seconds.
    slow = found["runSync slow"]
    assert (
        slow in ("error: timeout reached", "error: ctx timeout reached")
        or slow["status"] == "COMPLETED"
    )
    assert found["run"]["status"] == "IN_QUEUE"
    assert said(found["stream"]) == PIECES
    assert found["cancel"]["status"] == "CANCELLED"
    assert found["stream of the cancelled"] == "ended"
    assert found["purge"]["status"] == "completed"
    assert found["nonsense"] == "error: response status 404 Not Found"


TIMES: dict[str, type] = {"delayTime": int, "executionTime": int, "retries": int}
BRIEF: dict[str, type] = {"id": str, "status": str}
INPUT = {"input": prompt()}
GO: list[tuple[str, str, Any, dict[str, type]]] = [
    ("POST", "run", INPUT, BRIEF),
    ("POST", "runsync?wait=20000", INPUT, BRIEF | TIMES),
    ("POST", "status/{job}", None, BRIEF | TIMES),
    ("POST", "status-sync/{job}?wait=20000", None, BRIEF),
    ("POST", "stream/{job}?wait=20000", None, {"status": str, "stream": list}),
    ("POST", "cancel/{job}", None, BRIEF),
    ("POST", "purge-queue", None, {"removed": int, "status": str}),
    ("GET", "health", None, {"workers": dict, "jobs": dict}),
]


@pytest.mark.parametrize(("method", "operation", "body", "shape"), GO)
async def test_responses_have_the_types_that_the_go_client_decodes(
    served: Proxy, method: str, operation: str, body: Any, shape: dict[str, type]
) -> None:
    """The Go client accepts only status 200, integer times and `retries`, and a string `error`."""
    queue = QueueClient(served, "Bearer one")
    job = await queue.run(prompt(stream=True))
    await queue.end(job)
    headers = {"Content-Type": "application/json"}
    data = None if body is None else json.dumps(body)
    answer = await queue.call(method, operation.format(job=job), data=data, headers=headers)
    assert answer.status == 200
    assert {name: type(answer[name]) for name in shape} == shape
    assert isinstance(answer.body.get("error", ""), str)
