"""Webhooks of durable jobs, delivered to a real receiver."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from aiohttp import web
from harness.network.webhook_desk import INPUT, KEY, OUTPUT, Desk, render
from harness.network.webhook_receiver import Receiver, receiver
from harness.tools.waiting import until
from structlog.testing import capture_logs

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import Delivery, Job, Millis, Owner
from proxy.store.errors import StoreFullError
from proxy.store.memory import MemoryStore
from proxy.webhooks.lookup import SendTimeouts
from proxy.webhooks.signature import format_secret


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest_asyncio.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as running:
        yield running


async def test_an_end_is_delivered_once_unchanged_and_signed(desk: Desk, hook: Receiver) -> None:
    async with desk.open() as deliveries:
        job = await desk.end("a", hook.url)
        deliveries.wake()
        received = await hook.next()
        await until(desk.is_noted)
    assert received.path == "/hook?token=hush"
    assert received.body == await render(job)
    assert INPUT in received.body
    assert OUTPUT in received.body
    openai.OpenAI(api_key="none").webhooks.verify_signature(
        received.body, received.headers, secret=format_secret(KEY)
    )
    assert not await desk.is_due_in(24 * 3600_000)
    assert hook.received.empty()


async def test_the_public_library_accepts_what_arrives(desk: Desk, hook: Receiver) -> None:
    standardwebhooks = pytest.importorskip(
        "standardwebhooks", reason="pip install standardwebhooks"
    )
    async with desk.open() as deliveries:
        await desk.end("a", hook.url)
        deliveries.wake()
        received = await hook.next()
    assert (
        standardwebhooks.Webhook(format_secret(KEY)).verify(received.body, received.headers)["id"]
        == "a"
    )


async def test_the_signature_has_the_time_of_the_corrected_clock(
    desk: Desk, hook: Receiver
) -> None:
    """A receiver refuses a signature whose time differs by minutes from its own clock."""
    async with desk.open():
        await desk.end("a", hook.url)
        first = int((await hook.next()).headers["webhook-timestamp"])
        desk.clock.correct(3600)
        await desk.end("b", hook.url)
        assert int((await hook.next()).headers["webhook-timestamp"]) == first + 3600


async def test_a_clock_alone_wakes_the_loop(desk: Desk, hook: Receiver) -> None:
    async with desk.open():
        await desk.end("a", hook.url, Event.FAIL)
        assert b'"FAILED"' in (await hook.next()).body


@pytest.mark.parametrize("status", [500, 201, 204, 302, 404])
async def test_any_status_but_200_is_retried_after_ten_seconds(
    desk: Desk, hook: Receiver, status: int
) -> None:
    hook.statuses = [status]
    async with desk.open() as deliveries:
        await desk.end("a", hook.url)
        deliveries.wake()
        first = await hook.next()
        await until(desk.is_noted)
        assert not await desk.is_due_in(9_999)
        assert await desk.is_due_in(10_000)
        desk.clock.pass_time(10)
        deliveries.wake()
        second = await hook.next()
        await until(desk.is_noted)
        assert not await desk.is_due_in(24 * 3600_000)
    assert first.id == second.id
    assert first.body == second.body
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 10
    openai.OpenAI(api_key="none").webhooks.verify_signature(
        second.body, second.headers, secret=format_secret(KEY)
    )


async def test_after_three_attempts_a_delivery_fails_with_one_line_without_secrets(
    desk: Desk, hook: Receiver
) -> None:
    hook.statuses = [500, 503, 404]
    with capture_logs() as logs:
        async with desk.open() as deliveries:
            await desk.end("a", hook.url)
            for _ in range(3):
                deliveries.wake()
                await hook.next()
                await until(desk.is_noted)
                desk.clock.pass_time(10)
            await until(lambda: any(line["event"] == "delivery.gave_up" for line in logs))
            assert not await desk.is_due_in(24 * 3600_000)
    (line,) = [line for line in logs if line["log_level"] != "debug"]
    assert line == {
        "event": "delivery.gave_up", "log_level": "warning",
        "job": "a", "receiver": f"http://127.0.0.1:{hook.port}", "tries": 3, "why": "status 404",
    }  # fmt: skip
    assert "hush" not in str(logs)


async def test_a_receiver_that_never_answers_is_disconnected(desk: Desk, hook: Receiver) -> None:
    hook.may_answer.clear()
    with capture_logs() as logs:
        async with desk.open(timeouts=SendTimeouts(total=0.2)) as deliveries:
            await desk.end("a", hook.url)
            deliveries.wake()
            await hook.next()
            await until(desk.is_noted)
            assert await desk.is_due_in(10_000)
            await until(lambda: hook.now == 0, what="its connection is closed")
    assert [line["why"] for line in logs if line["event"] == "delivery.failed"] == ["TimeoutError"]


async def test_an_unreachable_receiver_is_retried(desk: Desk) -> None:
    async with receiver() as gone:
        url = gone.url
    async with desk.open() as deliveries:
        await desk.end("a", url)
        deliveries.wake()
        await until(desk.is_noted)
        assert await desk.is_due_in(10_000)


@pytest.mark.parametrize("status", [200, 500])
async def test_an_endless_answer_is_not_read(desk: Desk, hook: Receiver, status: int) -> None:
    """Only the status matters. The rest stays in the kernel until the connection is closed."""
    cut: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        sent = 0
        try:
            while True:
                await response.write(bytes(64 * 1024))
                sent += 64 * 1024
        except (ConnectionError, asyncio.CancelledError):
            cut.set_result(sent)
            raise

    hook.answer = flood
    async with desk.open() as deliveries:
        await desk.end("a", hook.url)
        deliveries.wake()
        await hook.next()
        assert await asyncio.wait_for(cut, 10) < 64 * 1024 * 1024
        await until(desk.is_noted)
        assert await desk.is_due_in(10_000) is (status != 200)


async def test_endless_headers_are_cut_off(desk: Desk, hook: Receiver) -> None:
    async def shout(_: web.Request) -> web.Response:
        return web.Response(headers={f"x-{number}": "y" * 8000 for number in range(200)})

    hook.answer = shout
    async with desk.open() as deliveries:
        await desk.end("a", hook.url)
        deliveries.wake()
        await hook.next()
        await until(desk.is_noted)
        assert await desk.is_due_in(10_000)


async def test_a_large_body_arrives_complete(desk: Desk, hook: Receiver) -> None:
    async def big(_: Job) -> bytes:
        return b'"' + b"x" * 8_000_000 + b'"'

    async with desk.open(render=big) as deliveries:
        await desk.end("a", hook.url)
        deliveries.wake()
        assert len((await hook.next()).body) == 8_000_002


async def test_a_slow_receiver_has_four_deliveries_and_blocks_no_other(
    desk: Desk, hook: Receiver
) -> None:
    hook.may_answer.clear()
    async with receiver() as quick, desk.open() as deliveries:
        for number in range(12):
            await desk.end(
                f"slow-{number}",
                hook.named("slow.example") if number % 2 else hook.named("SLOW.example"),
            )
        await desk.end("quick", quick.named("quick.example"))
        deliveries.wake()
        assert b'"quick"' in (await quick.next()).body
        waiting = [await hook.next() for _ in range(4)]
        assert hook.now == 4
        hook.may_answer.set()
        waiting += [await hook.next() for _ in range(8)]
        await until(desk.is_noted)
    assert hook.most == 4
    assert len({received.id for received in waiting}) == 12
    assert hook.received.empty()


async def test_thousands_of_deliveries_to_one_receiver_block_no_other(
    desk: Desk, hook: Receiver
) -> None:
    hook.may_answer.clear()
    async with receiver() as quick, desk.open() as deliveries:
        for number in range(3_000):
            await desk.end(f"slow-{number}", hook.named("slow.example"))
        await desk.end("quick", quick.named("quick.example"))
        deliveries.wake()
        assert b'"quick"' in (await quick.next()).body
    assert hook.most == 4


async def test_all_receivers_together_have_a_limit(desk: Desk, hook: Receiver) -> None:
    hook.may_answer.clear()
    async with desk.open(max_deliveries=6) as deliveries:
        for number in range(20):
            url = hook.named(f"host-{number}.example")
            await desk.end(f"job-{number}", url, owner=Owner(f"owner-{number % 10}"))
        deliveries.wake()
        for _ in range(6):
            await hook.next()
        hook.may_answer.set()
        for _ in range(14):
            await hook.next()
        await until(desk.is_noted)
    assert hook.most == 6


async def test_the_bodies_of_active_deliveries_are_limited(desk: Desk, hook: Receiver) -> None:
    rendered: list[str] = []

    async def note(job: Job) -> bytes:
        rendered.append(job.id)
        return b"{}"

    hook.may_answer.clear()
    async with desk.open(render=note, max_body_bytes=2) as deliveries:
        await desk.end("a", hook.named("a.example"))
        await desk.end("b", hook.named("b.example"))
        deliveries.wake()
        await hook.next()
        assert len(rendered) == 1
        hook.may_answer.set()
        await hook.next()
        assert sorted(rendered) == ["a", "b"]


async def test_many_ends_reach_a_receiver_that_fails_half_of_them(
    desk: Desk, hook: Receiver
) -> None:
    tries: dict[str, int] = {}

    async def moody(request: web.Request) -> web.Response:
        job = request.headers["webhook-id"]
        tries[job] = tries.get(job, 0) + 1
        return web.Response(status=500 if tries[job] == 1 and hash(job) % 2 else 200)

    hook.answer = moody
    async with desk.open() as deliveries:
        for number in range(500):
            await desk.end(f"job-{number}", hook.named(f"host-{number % 10}.example"))
        deliveries.wake()
        await until(desk.is_noted, 30)
        desk.clock.pass_time(10)
        await until(desk.is_noted, 30)
    assert not await desk.is_due_in(24 * 3600_000)
    assert len(tries) == 500
    assert all(number == 1 + hash(job) % 2 for job, number in tries.items())


async def test_a_drain_aborts_slow_deliveries_and_the_next_proxy_repeats_them(
    desk: Desk, hook: Receiver
) -> None:
    hook.may_answer.clear()
    async with desk.open() as deliveries:
        await desk.end("a", hook.url)
        deliveries.wake()
        first = await hook.next()
    assert await desk.is_due()
    hook.may_answer.set()
    async with desk.open():
        second = await hook.next()
        await until(desk.is_noted)
    assert first.id == second.id


async def test_a_drain_finishes_active_deliveries_and_starts_none(
    desk: Desk, hook: Receiver
) -> None:
    hook.may_answer.clear()
    async with desk.open(drain=10.0, max_per_receiver=1) as deliveries:
        await desk.end("a", hook.url)
        await desk.end("b", hook.url)
        deliveries.wake()
        received = await hook.next()
        draining = asyncio.create_task(deliveries.drain(10.0))
        await asyncio.sleep(0)
        hook.may_answer.set()
        await draining
    (left,) = await desk.store.deliveries(desk.clock.now(), 10)
    assert {left.job.id, received.id.removesuffix("-0")} == {"a", "b"}
    assert hook.received.empty()


async def test_a_job_that_is_retried_withdraws_its_delivery(desk: Desk, hook: Receiver) -> None:
    """The second job is retried while its delivery waits; only its new end is sent."""
    hook.may_answer.clear()
    async with desk.open(max_per_receiver=1) as deliveries:
        await desk.end("a", hook.url)
        again = await desk.end("b", hook.url, Event.FAIL)
        deliveries.wake()
        await hook.next()
        await desk.store.settle(again.id, Event.RETRY, now=desk.clock.now())
        hook.may_answer.set()
        await until(desk.is_noted)
        await desk.store.settle(again.id, Event.CANCEL, now=desk.clock.now())
        deliveries.wake()
        received = await hook.next()
        await until(desk.is_noted)
    assert (received.id, b'"CANCELLED"' in received.body) == ("b-1", True)
    assert hook.received.empty()


async def test_a_bug_in_the_rendering_counts_as_an_attempt(desk: Desk, hook: Receiver) -> None:
    async def broken(_: Job) -> bytes:
        raise RuntimeError("a bug")

    with capture_logs() as logs:
        async with desk.open(render=broken) as deliveries:
            await desk.end("a", hook.url)
            for _ in range(3):
                deliveries.wake()
                await until(desk.is_noted)
                desk.clock.pass_time(10)
    assert [line["event"] for line in logs if line["log_level"] != "debug"] == [
        *("delivery.broke",) * 3,
        "delivery.gave_up",
    ]


class FullStore(MemoryStore):
    """A store whose disk is full. `writes`: the attempts to record a delivery."""

    writes = 0

    async def tried(self, delivery: Delivery, again_at: Millis | None) -> None:  # noqa: ARG002 - nothing is kept
        self.writes += 1
        raise StoreFullError


async def test_a_full_disk_does_not_cause_a_flood_of_deliveries(desk: Desk, hook: Receiver) -> None:
    store = FullStore()
    desk.store = store
    async with desk.open() as deliveries:
        await desk.end("a", hook.url)
        deliveries.wake()
        await hook.next()
        await until(lambda: store.writes > 2, what="the write is repeated")
        # The delivery is due, and the loop checks it each time.
        for _ in range(3):
            deliveries.wake()
            await asyncio.sleep(0)
    assert hook.received.empty()
