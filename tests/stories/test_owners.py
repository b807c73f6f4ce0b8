"""Isolation of owners that share a proxy and its workers.

No owner receives a byte or an id of another, or a response that reveals that a job exists.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from harness.load.figures import tell
from harness.load.owners import MARK, OF_ONE_JOB, OwnerLoad, one_request, owners
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import Proxy, serving
from harness.worker.process import worker
from pydantic import SecretStr

from proxy.access.limits import LIMITS

pytestmark = pytest.mark.slow

OWNERS, AT_ONCE = 50, 60
REQUESTS, REQUESTS_OF_TORTURE = 1_500, 20_000
NO_LIMITS = [f"{name}=0" for name in LIMITS]


@asynccontextmanager
async def shared(seed: int, workers: int = 2) -> AsyncIterator[tuple[Proxy, OwnerLoad]]:
    """Start a proxy with workers and a key for each owner."""
    all_of_them = owners(OWNERS, seed)
    keys = [SecretStr(f"{owner.name}={owner.key}") for owner in all_of_them]
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(serving(api_key=keys, limit=NO_LIMITS))
        for _ in range(workers):
            await stack.enter_async_context(worker(proxy))
        yield proxy, OwnerLoad(proxy.http, all_of_them)


async def everybody_asks(seen: OwnerLoad, requests: int, seed: int) -> None:
    """Send `requests` requests of randomly drawn owners over shared connections."""
    chance = random.Random(seed)
    drawn = iter([chance.choice(seen.owners) for _ in range(requests)])

    async def ask_on() -> None:
        for owner in drawn:
            await one_request(seen, owner)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(ask_on())


def tell_of(seen: OwnerLoad, requests: int) -> None:
    tell("requests of 50 owners", requests)
    tell(
        "of them left or cancelled",
        sum(n for kind, n in seen.done.items() if "left" in kind or "cancel" in kind),
    )
    tell("bytes looked at", seen.looked_at, "", "bytes")
    tell("foreign watermarks", len(seen.foreign), "0")
    tell("questions for another's job", seen.done["asked for another's job"])
    tell("answers that tell of another's job", len(seen.unequal), "0")


async def never_mixed(requests: int, seed: int) -> None:
    async with shared(seed) as (proxy, seen):
        await everybody_asks(seen, requests, seed)
        tell_of(seen, requests)
        assert seen.foreign == []
        alice, bob = seen.owners[:2]
        seen.look(alice, f"...{bob.mark}...".encode())
        assert len(seen.foreign) == 1, "it would have been noticed"
        assert seen.unequal == []
        assert seen.done["asked for another's job"] > requests / 10
        assert all(
            seen.done[f"{kind}, left"]
            for kind in ("OpenAI", "OpenAI stream", "runsync", "run and stream")
        )
        for owner in seen.owners:
            listed = (await QueueClient(proxy, owner.key).call("GET", "requests?limit=1000"))[
                "requests"
            ]
            strangers = {job for other in seen.owners if other is not owner for job in other.jobs}
            assert listed
            assert not strangers & {row["id"] for row in listed}


@pytest.mark.timeout(110)
async def test_no_owner_receives_a_byte_of_another() -> None:
    await never_mixed(REQUESTS, seed=1)


@pytest.mark.torture
@pytest.mark.timeout(1200)
async def test_no_owner_receives_a_byte_of_another_in_twenty_thousand_requests() -> None:
    await never_mixed(REQUESTS_OF_TORTURE, seed=2)


async def test_a_queued_job_of_another_owner_is_unchanged_and_hidden() -> None:
    """Operations on all jobs skip those of other owners, and reveal only their number."""
    async with shared(3, workers=0) as (proxy, seen):
        alice, bob = (QueueClient(proxy, owner.key) for owner in seen.owners[:2])
        jobs = [await alice.run(prompt(seen.owners[0].mark)) for _ in range(3)]
        assert (await bob.call("POST", "purge-queue")).body == {"removed": 0, "status": "completed"}
        assert (await bob.call("GET", "requests")).body == {"requests": [], "next": None}
        shown = json.dumps((await bob.call("GET", "health")).body).encode()
        assert not MARK.search(shown)
        assert not any(
            job.encode() in shown or seen.owners[0].name.encode() in shown for job in jobs
        )
        assert (await bob.call("GET", "health")).body == (await alice.call("GET", "health")).body
        unknown = "00000000-0000-4000-8000-000000000000-u1"
        for method, operation in OF_ONE_JOB:
            foreign, none = [
                await bob.call(method, f"{operation}/{job}") for job in (jobs[0], unknown)
            ]
            assert (foreign.status, none.status) == (404, 404)
            assert json.dumps(foreign.body).replace(jobs[0], unknown) == json.dumps(none.body)
        assert [(await alice.status(job))["status"] for job in jobs] == ["IN_QUEUE"] * 3
        assert (await alice.call("POST", "purge-queue"))["removed"] == 3
