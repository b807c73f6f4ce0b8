"""Readers that stop reading use bounded memory, delay no other client, and leave nothing behind."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from harness.load.bystander import healthy
from harness.load.figures import tell
from harness.load.stalled import TOKEN, Stalled, loads, stall, until_stalled
from harness.proxy.process import MB, Alone, alone
from harness.tools.waiting import until

from proxy.edge.memory import TRIM_SECONDS

# Output that waits for its readers, and the memory that the process uses besides.
GROWTH_MAX_BYTES = (256 + 64) * MB
# What may stay when the readers have left.
REST_MAX_BYTES = 64 * MB
LEAVE_SECONDS = 30.0
SETTINGS = {"limit": "status=0 stream=0", "log_level": "warning", "worker_token": TOKEN}


async def stalled(proxy: Alone, load: Stalled) -> None:
    """Measure the memory while clients stall, and after they have left."""
    name = load.name
    before = proxy.memory()
    proxy.forget_most()
    async with healthy(proxy.url) as waits:
        with stall(proxy.url, load):
            await until_stalled(proxy)
            # By then, memory that was used for a moment is returned to the system.
            await asyncio.sleep(TRIM_SECONDS + 1)
            held = proxy.memory() - before
    assert waits.statuses == {200}
    await until(
        lambda: proxy.memory() - before <= REST_MAX_BYTES, LEAVE_SECONDS, f"{name}: memory is freed"
    )
    peak = proxy.most_memory() - before
    tell(f"{name}: memory", round(held / MB, 1), f"<= {GROWTH_MAX_BYTES // MB}", "MB")
    tell(f"{name}: memory at its most", round(peak / MB, 1), "", "MB")
    tell(f"{name}: memory that stays", round((proxy.memory() - before) / MB, 1), "<= 64", "MB")
    tell(f"{name}: other clients, p99", round(waits.p99() * 1000, 1), "", "ms")
    assert held <= GROWTH_MAX_BYTES


@pytest.mark.torture
@pytest.mark.timeout(600)
async def test_readers_that_stall_use_bounded_memory(tmp_path: Path) -> None:
    async with alone(tmp_path, **SETTINGS) as proxy, aiohttp.ClientSession(proxy.url) as http:
        for load in await loads(http):
            await stalled(proxy, load)
