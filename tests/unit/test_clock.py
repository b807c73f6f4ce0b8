"""The wall clock, and the check of the clock at the start."""

import time
from pathlib import Path
from typing import cast

import pytest
from harness.data.clock import FakeClock
from harness.data.faulty_store import Fault, FaultyStore
from harness.data.jobs import ALICE, HERE, submission
from structlog.testing import capture_logs

from proxy.app import Parts, compose
from proxy.jobs.lifecycle import Event
from proxy.jobs.model import JobId, Millis, WorkerId
from proxy.jobs.policy import DELIVERY_RETRY_MILLIS
from proxy.service.clock import shown
from proxy.service.clock_check import ClockCheck
from proxy.settings import MEMORY, Settings
from proxy.store.base import JobStore
from proxy.store.errors import StoreBusyError
from proxy.system import System, SystemClock

DAY = 24 * 3600
GRACE = 600
HOOK = "https://receiver.example/hook"


class Correctable:
    """The system's clock, as a correction of it looks to `SystemClock`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._read = time.time_ns

    def correct(self, seconds: int) -> None:
        read = self._read
        self._monkeypatch.setattr(time, "time_ns", lambda: read() + seconds * 1_000_000_000)


@pytest.fixture
def system_time(monkeypatch: pytest.MonkeyPatch) -> Correctable:
    return Correctable(monkeypatch)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_correction_of_the_clock_changes_the_wall_clock_only(
    system_time: Correctable, seconds: int
) -> None:
    clock = SystemClock()
    before = clock.now()
    system_time.correct(seconds)
    assert 0 <= clock.now() - before < 1_000
    assert abs(clock.wall() - clock.now() - seconds * 1000) < 1_000
    assert abs(shown(clock, before) - before - seconds * 1000) < 1_000


def test_small_corrections_do_not_change_the_times_shown() -> None:
    clock = FakeClock()
    clock.correct(0.4)
    assert shown(clock, Millis(5)) == Millis(5)
    clock.correct(0.4)
    assert shown(clock, Millis(5)) == Millis(1_005)


def composed(folder: Path, clock: FakeClock) -> Parts:
    return compose(Settings(store=MEMORY, data_dir=folder), System(clock=clock))


async def started(folder: Path, clock: FakeClock, seconds: float) -> Parts:
    """Return the parts of a proxy with a queued and an ended job, started this time after them."""
    parts = composed(folder, clock)
    store = parts.store
    day = Millis(clock.now() + DAY * 1000)
    await store.submit(submission("queued", expires_at=day), clock.now())
    await store.submit(submission("ended", retention=Millis(1_800_000)), clock.now())
    assert await store.settle(JobId("ended"), Event.CANCEL, now=clock.now())
    clock.pass_time(seconds)
    await parts.clock_check.start()
    return parts


async def swept(parts: Parts) -> tuple[bool, bool]:
    """Let the sweeper work; return whether the queued job and the result are still there."""
    await parts.durable_sweeper.end_overdue()
    await parts.durable_sweeper.forget()
    counts = await parts.store.counts(HERE)
    return counts.in_queue == 1, await parts.store.find(JobId("ended")) is not None


async def test_nothing_expires_for_a_while_if_the_clock_may_be_ahead(
    tmp_path: Path, clock: FakeClock
) -> None:
    with capture_logs() as lines:
        parts = await started(tmp_path, clock, 2 * DAY)
    [warning] = [line for line in lines if line["event"] == "clock.jumped"]
    assert (warning["hours_ahead"], warning["grace_seconds"]) == (48, GRACE)
    clock.pass_time(GRACE - 1)
    assert await swept(parts) == (True, True)
    clock.pass_time(1)
    assert await swept(parts) == (False, False)


async def test_nothing_expires_after_the_clock_was_corrected_until_a_restart(
    tmp_path: Path, clock: FakeClock
) -> None:
    parts = await started(tmp_path, clock, 2 * DAY)
    clock.correct(-2 * DAY)
    clock.pass_time(GRACE)
    assert not parts.clock_check.is_trusted()
    # Not without limit.
    clock.pass_time(DAY)
    assert parts.clock_check.is_trusted()


async def test_records_from_a_time_when_the_clock_was_further_ahead_hide_nothing(
    tmp_path: Path, clock: FakeClock
) -> None:
    parts = composed(tmp_path, clock)
    await parts.store.submit(submission("now"), clock.now())
    await parts.store.submit(submission("ahead"), Millis(clock.now() + 40 * DAY * 1000))
    clock.pass_time(2 * DAY)
    await parts.clock_check.start()
    assert not parts.clock_check.is_trusted()


@pytest.mark.parametrize("seconds", [-2 * DAY, 0, DAY])
async def test_a_start_soon_after_the_newest_record_expires_jobs_at_once(
    tmp_path: Path, clock: FakeClock, seconds: float
) -> None:
    with capture_logs() as lines:
        parts = await started(tmp_path, clock, seconds)
    assert parts.clock_check.is_trusted()
    assert not lines


async def test_an_empty_store_needs_no_grace_period(tmp_path: Path, clock: FakeClock) -> None:
    parts = composed(tmp_path, clock)
    await parts.clock_check.start()
    assert parts.clock_check.is_trusted()


async def test_a_webhook_does_not_wait_for_the_time_before_the_clock_was_set_back(
    tmp_path: Path, clock: FakeClock
) -> None:
    parts = composed(tmp_path, clock)
    await parts.store.submit(submission("a", webhook=HOOK), clock.now())
    [job] = await parts.store.take(
        HERE, WorkerId("w"), limit=1, light_limit=0, now=clock.now(), run=1
    )
    assert await parts.store.settle(job.id, Event.COMPLETE, now=clock.now(), run=1)
    [delivery] = await parts.store.deliveries(clock.now(), 1)
    again = Millis(clock.now() + DELIVERY_RETRY_MILLIS)
    await parts.store.tried(delivery, again)
    await parts.clock_check.start()
    assert not await parts.store.deliveries(clock.now(), 1), "a usual pause"
    clock.pass_time(-3600)
    restarted = ClockCheck(parts.store, clock, grace=Millis(0))
    await restarted.start()
    assert await parts.store.deliveries(clock.now(), 1)


async def test_deliveries_are_made_due_later_if_the_store_fails_at_the_start(
    tmp_path: Path, clock: FakeClock
) -> None:
    store = FaultyStore()
    store.arm(Fault(lambda: StoreBusyError("locked"), times=2), 0, "hasten")
    settings = Settings(store=MEMORY, data_dir=tmp_path)
    parts = compose(settings, System(clock=clock), cast("JobStore", store))
    with capture_logs() as lines:
        await parts.clock_check.start()
    assert [line["event"] for line in lines] == ["clock.deliveries_wait"]
    with pytest.raises(StoreBusyError):
        await parts.durable_sweeper.forget()
    for _ in range(2):
        await parts.durable_sweeper.forget()
    assert store.calls == ["hasten"] * 3


async def test_a_listing_shows_the_times_of_the_wall_clock(
    tmp_path: Path, clock: FakeClock
) -> None:
    parts = composed(tmp_path, clock)
    job = await parts.store.submit(submission("a"), clock.now())
    clock.correct(3600)
    assert job.submission.owner == ALICE
    assert shown(clock, job.created_at) == job.created_at + 3_600_000
