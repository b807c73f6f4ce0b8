"""Thousands of streams without a worker: little memory, regular heartbeats and a clean end."""

from pathlib import Path

import pytest
from harness.load.bystander import healthy
from harness.load.figures import tell
from harness.load.idle_streams import allow_descriptors, idling
from harness.proxy.process import KB, MB, alone
from harness.tools.waiting import until

pytestmark = pytest.mark.slow

# Streams that are opened before memory is measured, so that one-time allocations are not counted.
WARM_UP_STREAMS = 50
SETTINGS = {"limit": "openai=0/0", "max_queued": 20_000, "queue_timeout": 600, "drain": 1}
# File descriptors that are not used by streams.
OTHER_DESCRIPTORS = 1_000


async def hold(folder: Path, number: int, heartbeats: int) -> tuple[int, int, float]:
    """Hold `number` idle streams until each has had some heartbeats.

    Returns the proxy's bytes before and during this, and the p99 latency of another client.
    """
    allow_descriptors(number + OTHER_DESCRIPTORS)
    async with alone(folder, **SETTINGS) as proxy, idling(proxy.url, WARM_UP_STREAMS) as first:
        await until(
            lambda: all(one.heartbeats for one in first), 10.0, "the first streams had a heartbeat"
        )
        before = proxy.memory()
        async with idling(proxy.url, number) as streams:
            await until(
                lambda: all(one.heartbeats for one in streams), 60.0, "all streams had a heartbeat"
            )
            async with healthy(proxy.url) as waits:
                await until(
                    lambda: all(one.heartbeats >= heartbeats for one in streams),
                    90.0,
                    "all streams had all heartbeats",
                )
            held = proxy.memory()
            assert await proxy.command.stop() == 0
            await until(lambda: all(one.is_over for one in streams), 10.0, "all streams have ended")
            cut = [one.tail for one in streams if not one.is_whole]
            assert not cut, (len(cut), cut[0])
            silence = max(one.longest_silence for one in streams)
    tell("longest silence of an idle stream", silence, "<= 6", "s")
    tell("bytes for each idle stream", (held - before) / number, f"<= {35 * KB}", "B")
    tell("memory with idle streams", held / MB, "<= 350", "MB")
    return before, held, waits.p99()


@pytest.mark.timeout(120)
async def test_a_thousand_idle_streams_cost_little_and_end_cleanly(tmp_path: Path) -> None:
    before, held, p99 = await hold(tmp_path, 1_000, 2)
    tell("healthy p99 beside 1,000 idle streams", p99 * 1000, "", "ms")
    assert (held - before) / 1_000 <= 35 * KB


@pytest.mark.torture
@pytest.mark.timeout(400)
async def test_ten_thousand_idle_streams_fit_in_350_mb(tmp_path: Path) -> None:
    _, held, p99 = await hold(tmp_path, 10_000, 4)
    tell("healthy p99 beside 10,000 idle streams", p99 * 1000, "<= 50", "ms")
    assert held <= 350 * MB
