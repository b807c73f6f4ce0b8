"""Large responses in flight to slow clients are bounded by a byte budget."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import pytest
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy, serving
from harness.tools.waiting import until
from harness.worker.puppet import puppet
from pydantic import SecretStr

from proxy.access.limits import Budget
from proxy.app import ANSWERS_MAX_BYTES
from proxy.service.mailbox import STALL_SECONDS
from proxy.wire.frames import End, Output

pytestmark = pytest.mark.slow

OUTPUT = "x" * (50 * 1024 * 1024)
EMBEDDINGS = "/v2/default/openai/v1/embeddings"
FIT = ANSWERS_MAX_BYTES // len(OUTPUT)


@contextmanager
def stalled_client(
    proxy: Proxy, path: str, body: bytes | None = None, accept: str = "*/*", key: str = ""
) -> Iterator[None]:
    """Send a request and do not read the response."""
    host, port = proxy.url.removeprefix("http://").split(":")
    fields = f"Host: localhost\r\nAccept: {accept}\r\nAuthorization: Bearer {key}\r\n"
    request = f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode()
    if body is not None:
        fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        request = f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        client.connect((host, int(port)))
        client.sendall(request)
        yield


async def take_and_answer(proxy: Proxy, output: Any) -> str:
    """Take and complete one job as a Runpod worker; return the job's id."""
    headers = {"Authorization": proxy.parts.token}
    async with proxy.http.get(
        "/v2/default/job-take/w-1?job_in_progress=0", headers=headers
    ) as taken:
        job: str = (await taken.json())["id"]
    done = BytesIO(json.dumps({"output": output}).encode())
    async with proxy.http.post(
        f"/v2/default/job-done/w-1/{job}", headers=headers, data=done
    ) as response:
        assert response.status == 200
    return job


async def test_unread_responses_are_bounded() -> None:
    async with serving() as proxy:
        queue = QueueClient(proxy)
        job = await queue.run("large")
        assert await take_and_answer(proxy, OUTPUT) == job
        answers = proxy.parts.answers
        with ExitStack() as readers:
            for number in range(1, FIT + 1):
                readers.enter_context(stalled_client(proxy, f"/v2/default/status/{job}"))
                size = number * len(OUTPUT)
                await until(partial(_has_used, answers, size), 20, "it is in flight")
            refused = await queue.call("GET", f"status/{job}")
            assert refused.status == 503
            assert refused.headers["retry-after"] == "5"
        await until(lambda: answers.used == 0, 10, "the clients have disconnected")
        answer = await queue.call("GET", f"status/{job}")
        assert answer["output"] == OUTPUT
        assert answers.used == 0


async def test_unread_responses_of_one_owner_leave_half_of_the_bound() -> None:
    keys = [SecretStr("alice=alice-secret"), SecretStr("bob=bob-secret")]
    async with serving(api_key=keys) as proxy:
        alice, bob = QueueClient(proxy, "alice-secret"), QueueClient(proxy, "bob-secret")
        job, other = await alice.run("large"), await bob.run("large")
        for submitted in (job, other):
            assert await take_and_answer(proxy, OUTPUT) == submitted
        answers = proxy.parts.answers
        path = f"/v2/default/status/{job}"
        with ExitStack() as readers:
            for number in range(1, FIT // 2 + 1):
                readers.enter_context(stalled_client(proxy, path, key="alice-secret"))
                size = number * len(OUTPUT)
                await until(partial(_has_used, answers, size), 20, "it is in flight")
            assert (await alice.call("GET", f"status/{job}")).status == 503
            assert (await bob.call("GET", f"status/{other}"))["output"] == OUTPUT


async def test_unread_responses_of_the_openai_api_share_the_bound() -> None:
    async with serving() as proxy:
        answers, body = proxy.parts.answers, b'{"model": "any", "input": "x"}'
        output = {"object": "list", "data": OUTPUT}
        with ExitStack() as readers:
            for number in range(1, FIT + 1):
                readers.enter_context(stalled_client(proxy, EMBEDDINGS, body))
                await take_and_answer(proxy, output)
                size = number * len(OUTPUT)
                await until(partial(_has_used, answers, size), 20, "it is in flight")
            refused = asyncio.create_task(_embeddings(proxy, body))
            await take_and_answer(proxy, output)
            status, text = await refused
            assert (status, json.loads(text)["error"]["code"]) == (503, "overloaded")
        await until(lambda: answers.used == 0, 10, "the clients have disconnected")
        whole = asyncio.create_task(_embeddings(proxy, body))
        await take_and_answer(proxy, output)
        status, text = await whole
        assert (status, json.loads(text)) == (200, output)
        assert answers.used == 0


@pytest.mark.torture
async def test_a_client_that_reads_nothing_for_a_minute_is_disconnected() -> None:
    async with serving() as proxy:
        queue, answers = QueueClient(proxy), proxy.parts.answers
        job = await queue.run("large")
        assert await take_and_answer(proxy, OUTPUT) == job
        with (
            stalled_client(proxy, f"/v2/default/status/{job}"),
            stalled_client(proxy, EMBEDDINGS, b'{"model": "any", "input": "x"}'),
        ):
            await take_and_answer(proxy, {"object": "list", "data": OUTPUT})
            await until(lambda: answers.used >= 2 * len(OUTPUT), 20, "both responses are in flight")
            await until(
                lambda: answers.used == 0,
                STALL_SECONDS + 10,
                "both clients are disconnected",
            )


@pytest.mark.torture
async def test_an_event_stream_that_is_not_read_for_a_minute_is_disconnected() -> None:
    async with serving() as proxy:
        queue = QueueClient(proxy)
        job = await queue.run("large")
        async with puppet(proxy, slots=1) as worker:
            run = await worker.job()
            for _ in range(200):
                await worker.say(Output(job, run.attempt, b'"%b"' % (b"x" * 60_000)))
            await worker.say(End(job, run.attempt, "completed"))
            assert (await queue.end(job))["status"] == "COMPLETED"
        connections = proxy.parts.edge.connections
        await proxy.http.close()
        await until(lambda: connections.size == 0, 10, "all other connections are closed")
        with stalled_client(proxy, f"/v2/default/stream/{job}", accept="text/event-stream"):
            await until(lambda: connections.size == 1, 10, "it is connected")
            began = time.monotonic()
            await until(lambda: connections.size == 0, STALL_SECONDS + 20, "it is disconnected")
            assert time.monotonic() - began > STALL_SECONDS / 2, "it had not ended before"


def _has_used(answers: Budget, size: int) -> bool:
    return answers.used >= size


async def _embeddings(proxy: Proxy, body: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    async with proxy.http.post(EMBEDDINGS, headers=headers, data=body) as response:
        return response.status, await response.read()
