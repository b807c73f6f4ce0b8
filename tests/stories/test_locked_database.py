"""Another program locks the database, as a backup does: OpenAI calls go on, durable jobs wait."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, Proxy, chat, frames
from harness.tools.waiting import until
from harness.worker.process import worker


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold the write lock of a database file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def ask(proxy: Proxy) -> list[bytes]:
    async with proxy.http.post(CHAT, json=chat(stream=True)) as response:
        assert response.status == 200
        return await frames(response)


async def test_calls_go_on_while_the_database_is_locked(proxy: Proxy) -> None:
    """The only slot of the worker is free, and a durable job is before the calls in the queue."""
    queue = QueueClient(proxy)
    job = await queue.run({"prompt": "late", "sampling_params": {"max_tokens": 2}})
    path = proxy.parts.settings.store_file()
    assert path is not None
    with write_lock(path):
        async with worker(proxy, max_concurrency=1):
            async with asyncio.timeout(4):
                for _ in range(5):
                    assert (await ask(proxy))[-1] == b"data: [DONE]"
            assert (await queue.status(job))["status"] == "IN_QUEUE"
            ended = asyncio.create_task(queue.end(job))
    async with worker(proxy, max_concurrency=1):
        assert (await ended)["status"] == "COMPLETED"
        assert (await ask(proxy))[-1] == b"data: [DONE]"
        await until(
            lambda: not any(each.holds or each.reserved for each in proxy.parts.fleet),
            what="every slot is free",
        )
