"""Whole answers are large sometimes, and their clients slow: what is on its way to them is bounded."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from typing import Any

import pytest
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import Proxy, serving
from harness.tools.waiting import until

from proxy.api.sending import WRITE_TIMEOUT_SECONDS
from proxy.app import ANSWER_BYTES

OUTPUT = "x" * (50 * 1024 * 1024)
EMBEDDINGS = "/v2/default/openai/v1/embeddings"
FIT = ANSWER_BYTES // len(OUTPUT)


@contextmanager
def standing_reader(proxy: Proxy, path: str, body: bytes | None = None) -> Iterator[None]:
    """A client that asks and then reads nothing."""
    host, port = proxy.url.removeprefix("http://").split(":")
    asks = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    if body is not None:
        fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        asks = f"POST {path} HTTP/1.1\r\n{fields}".encode() + body
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        client.connect((host, int(port)))
        client.sendall(asks)
        yield


async def take_and_answer(proxy: Proxy, output: Any) -> str:
    """A stock worker that takes one job and answers it; the job's id."""
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


async def test_answers_that_nobody_reads_have_an_end() -> None:
    async with serving() as proxy:
        queue = QueueClient(proxy)
        job = await queue.run("large")
        assert await take_and_answer(proxy, OUTPUT) == job
        answers = proxy.parts.answers
        with ExitStack() as readers:
            for number in range(1, FIT + 1):
                readers.enter_context(standing_reader(proxy, f"/v2/default/status/{job}"))
                await until(
                    lambda n=number: answers.used >= n * len(OUTPUT), 20, "it is on its way"
                )  # type: ignore[misc]
            refused = await queue.call("GET", f"status/{job}")
            assert refused.status == 503
            assert refused.headers["retry-after"] == "5"
        await until(lambda: answers.used == 0, 10, "the readers have gone")
        answer = await queue.call("GET", f"status/{job}")
        assert answer["output"] == OUTPUT
        assert answers.used == 0


async def test_answers_of_the_openai_api_have_the_same_end() -> None:
    async with serving() as proxy:
        answers, body = proxy.parts.answers, b'{"model": "any", "input": "x"}'
        output = {"object": "list", "data": OUTPUT}
        with ExitStack() as readers:
            for number in range(1, FIT + 1):
                readers.enter_context(standing_reader(proxy, EMBEDDINGS, body))
                await take_and_answer(proxy, output)
                await until(
                    lambda n=number: answers.used >= n * len(OUTPUT), 20, "it is on its way"
                )  # type: ignore[misc]
            refused = asyncio.create_task(_embeddings(proxy, body))
            await take_and_answer(proxy, output)
            status, text = await refused
            assert (status, json.loads(text)["error"]["code"]) == (503, "overloaded")
        await until(lambda: answers.used == 0, 10, "the readers have gone")
        whole = asyncio.create_task(_embeddings(proxy, body))
        await take_and_answer(proxy, output)
        status, text = await whole
        assert (status, json.loads(text)) == (200, output)
        assert answers.used == 0


@pytest.mark.torture
async def test_a_reader_that_stands_for_more_than_a_minute_is_cut() -> None:
    async with serving() as proxy:
        queue, answers = QueueClient(proxy), proxy.parts.answers
        job = await queue.run("large")
        assert await take_and_answer(proxy, OUTPUT) == job
        with (
            standing_reader(proxy, f"/v2/default/status/{job}"),
            standing_reader(proxy, EMBEDDINGS, b'{"model": "any", "input": "x"}'),
        ):
            await take_and_answer(proxy, {"object": "list", "data": OUTPUT})
            await until(lambda: answers.used >= 2 * len(OUTPUT), 20, "both are on their way")
            await until(lambda: answers.used == 0, WRITE_TIMEOUT_SECONDS + 10, "both are cut")


async def _embeddings(proxy: Proxy, body: bytes) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    async with proxy.http.post(EMBEDDINGS, headers=headers, data=body) as response:
        return response.status, await response.read()
