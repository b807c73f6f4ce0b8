"""Whole answers are large sometimes, and their clients slow: what is on its way to them is bounded."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO

from harness.proxy import Proxy, serving
from harness.queue import QueueClient
from harness.waiting import until

from proxy.app import ANSWER_BYTES

OUTPUT = "x" * (50 * 1024 * 1024)
FIT = ANSWER_BYTES // len(OUTPUT)


@contextmanager
def standing_reader(proxy: Proxy, path: str) -> Iterator[None]:
    """A client that asks and then reads nothing."""
    host, port = proxy.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        client.connect((host, int(port)))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield


async def test_answers_that_nobody_reads_have_an_end() -> None:
    async with serving() as proxy:
        queue, headers = QueueClient(proxy), {"Authorization": proxy.parts.token}
        job = await queue.run("large")
        async with proxy.http.get("/v2/default/job-take/w-1?job_in_progress=0", headers=headers) as taken:
            assert (await taken.json())["id"] == job
        done = json.dumps({"output": OUTPUT}).encode()
        async with proxy.http.post(f"/v2/default/job-done/w-1/{job}", headers=headers, data=BytesIO(done)) as response:
            assert response.status == 200
        answers = proxy.parts.answers
        with ExitStack() as readers:
            for number in range(1, FIT + 1):
                readers.enter_context(standing_reader(proxy, f"/v2/default/status/{job}"))
                await until(lambda n=number: answers.used >= n * len(OUTPUT), 20, "it is on its way")  # type: ignore[misc]
            refused = await queue.call("GET", f"status/{job}")
            assert refused.status == 503
            assert refused.headers["retry-after"] == "5"
        await until(lambda: answers.used == 0, 10, "the readers have gone")
        answer = await queue.call("GET", f"status/{job}")
        assert answer["output"] == OUTPUT
        assert answers.used == 0
