"""For other owners a job does not exist: the response and the store calls are the same."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from harness.data.store_steps import STORES
from harness.proxy.queue_api import QueueClient
from harness.proxy.recorded_store import RecordedStore, recorded
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from pydantic import SecretStr

from proxy.access.limits import LIMITS
from proxy.api.queue.app import OPERATIONS

UNKNOWN = "00000000-0000-4000-8000-000000000000-u1"
OF_ONE_JOB = [
    (method, path) for path, methods in OPERATIONS.items() if "{job}" in path for method in methods
]
QUERIES = {
    "/status/{job}": ("", "?ttl=60000"),
    "/status-sync/{job}": ("?wait=90000",),
    "/stream/{job}": ("", "?wait=90000", "?after=0&wait=90000"),
}
EVENTS = {"Accept": "text/event-stream"}


@dataclass(frozen=True)
class Scene:
    """Alice's jobs, one of each kind, while Alice waits for the output of the first."""

    proxy: Proxy
    store: RecordedStore
    jobs: list[str]
    reading: asyncio.Task[object]

    async def ask_as_bob(
        self, method: str, operation: str, job: str, headers: dict[str, str]
    ) -> tuple[object, list[str]]:
        """Send a request as Bob; return the response and the store calls that it caused."""
        self.store.calls.clear()
        answer = await QueueClient(self.proxy, "bob-secret").call(
            method, operation.format(job=job), headers=headers
        )
        seen = answer.status, json.dumps(answer.body).replace(job, UNKNOWN)
        return seen, [call.replace(job, UNKNOWN) for call in self.store.naming(job, "bob")]


@pytest_asyncio.fixture(params=STORES)
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    store, given = recorded(STORES[request.param](tmp_path))
    keys = [SecretStr("alice=alice-secret"), SecretStr("bob=bob-secret")]
    async with AsyncExitStack() as stack:
        limit = [f"{name}=0" for name in LIMITS]
        proxy = await stack.enter_async_context(serving(job_store=given, api_key=keys, limit=limit))
        alice = QueueClient(proxy, "alice-secret")
        waiting, cancelled = await alice.run(1), await alice.run(1)
        await alice.call("POST", f"cancel/{cancelled}")
        headers = {"Authorization": "alice-secret"}
        call = asyncio.create_task(proxy.http.post(CHAT, json=chat(), headers=headers))
        await until(lambda: len(proxy.parts.interactive) == 1, what="the call is in the queue")
        interactive = next(iter(proxy.parts.interactive)).job.id
        reading = asyncio.create_task(alice.stream(waiting, "?wait=90000"))
        look = f"look('default', 'alice', '{waiting}', None"
        await until(lambda: bool(store.naming(look)), what="alice waits for output")
        yield Scene(proxy, store, [waiting, cancelled, interactive], reading)
        for task in (reading, call):
            task.cancel()
        await asyncio.gather(reading, call, return_exceptions=True)


async def test_a_job_of_another_owner_causes_the_store_calls_of_an_unknown_job(
    scene: Scene,
) -> None:
    for method, path in OF_ONE_JOB:
        for query in QUERIES.get(path, ("",)):
            for headers in ({}, EVENTS) if path.startswith("/stream") else ({},):
                operation = path[1:] + query
                unknown = await scene.ask_as_bob(method, operation, UNKNOWN, headers)
                assert unknown[0][0] == 404  # type: ignore[index]
                assert unknown[1], "the store was called"
                for job in scene.jobs:
                    assert await scene.ask_as_bob(method, operation, job, headers) == unknown, (
                        operation,
                        job,
                    )
    assert not scene.reading.done(), "the request did not wait for alice"
