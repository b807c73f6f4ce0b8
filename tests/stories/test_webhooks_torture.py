"""Ten thousand finished jobs, a receiver that fails half of the time, a cancelled proxy."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import openai
import pytest
from aiohttp import web
from harness.data.clock import FakeClock
from harness.data.jobs import HERE, submission
from harness.data.store_steps import sqlite_store
from harness.network.webhook_receiver import Receiver, receiver
from harness.tools.waiting import until

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Input, Job, Millis, WorkerId
from proxy.jobs.policy import DELIVERY_RETRY_MILLIS, MAX_DELIVERY_TRIES
from proxy.store.base import JobStore
from proxy.webhooks.deliveries import Deliveries
from proxy.webhooks.sender import Sender
from proxy.webhooks.signature import format_secret
from proxy.webhooks.url_policy import Allowed

KEY = bytes(range(32))
JOBS, HOSTS, CUTS = 10_000, 20, 20
# Number of a job's first attempts that fail, by the job's number.
FAILURES = (0, 1, 0, 2, 0, 3)
HOUR = 3_600_000


async def render(job: Job) -> bytes:
    return b'{"id":"%b","input":%b}' % (job.id.encode(), job.submission.work.body)


async def lookup(_: str, __: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def end_all(store: JobStore, hook: Receiver, now: Millis) -> None:
    for number in range(JOBS):
        url = hook.named(f"host-{number % HOSTS}.example")
        await store.submit(submission(str(number), work=Input(b'{"a": 1}'), webhook=url), now)
    while taken := await store.take(
        HERE, WorkerId("w"), limit=1_000, light_limit=0, now=now, run=1
    ):
        await asyncio.gather(
            *(store.settle(job.id, Event.COMPLETE, now=now, output=b"1") for job in taken)
        )


def has_grown(tries: Counter[str], number: int) -> bool:
    return tries.total() >= number


async def is_quiet(store: JobStore, clock: FakeClock) -> bool:
    return not await store.deliveries(clock.now(), 1)


@pytest.mark.torture
@pytest.mark.timeout(600)
async def test_every_end_is_delivered_or_was_attempted_three_times(tmp_path: Path) -> None:
    clock, tries, acknowledged = FakeClock(time.time_ns() // 1_000_000), Counter[str](), set[str]()
    client, secret = openai.OpenAI(api_key="none"), format_secret(KEY)

    async def moody(request: web.Request) -> web.Response:
        received = hook.received.get_nowait()
        client.webhooks.verify_signature(
            received.body, received.headers, secret=secret, tolerance=HOUR
        )
        tries[received.id] += 1
        if tries[received.id] <= FAILURES[int(received.id.removesuffix("-0")) % len(FAILURES)]:
            return web.Response(status=500)
        acknowledged.add(received.id)
        return web.Response()

    async with receiver() as hook:
        hook.answer = moody
        sender = Sender(
            KEY,
            Allowed.read(f"host-{number}.example" for number in range(HOSTS)),
            clock,
            lookup=lookup,
        )
        for cut in range(CUTS + 1):
            store = sqlite_store(tmp_path / "jobs.db")
            async with store.open():
                if cut == 0:
                    await end_all(store, hook, clock.now())
                serving = asyncio.create_task(Deliveries(store, sender, render, clock).serve())
                if cut < CUTS:
                    await until(partial(has_grown, tries, tries.total() + JOBS // CUTS))
                else:
                    for _ in range(MAX_DELIVERY_TRIES):
                        await until(partial(is_quiet, store, clock), 120)
                        clock.pass_time(DELIVERY_RETRY_MILLIS / 1000)
                    assert not await store.deliveries(Millis(clock.now() + HOUR), 1)
                serving.cancel()
                with suppress(asyncio.CancelledError):
                    await serving
    assert len(tries) == JOBS
    given_up = {
        received
        for received, number in tries.items()
        if received not in acknowledged and number >= MAX_DELIVERY_TRIES
    }
    assert len(acknowledged) + len(given_up) == JOBS
    assert len(given_up) <= JOBS // len(FAILURES) + 1
