"""Coding agents wait twelve minutes for the first token, with their default timers; only the idle
timer of Qwen Code is switched off.
"""

import asyncio
import os
from pathlib import Path

import pytest
from harness.agents.agent import Agent, scripted, turn
from harness.agents.aider import Aider
from harness.agents.codex import Codex
from harness.agents.outside import outside
from harness.agents.qwen import Qwen
from harness.agents.stories import REPEATS, runs
from harness.proxy.server import Proxy, serving
from harness.worker.process import worker

from proxy.jobs.model import EndpointId

PREFILL_SECONDS = float(os.environ.get("MINUTES") or 12) * 60
SLACK_SECONDS = 120.0
AGENTS: dict[str, Agent] = {"codex": Codex(), "qwen": Qwen(), "aider": Aider()}


@pytest.mark.torture
@pytest.mark.timeout(PREFILL_SECONDS + 3 * SLACK_SECONDS)
async def test_every_agent_waits_for_a_long_prefill(tmp_path: Path) -> None:
    # The watchdog is off, because the scripted engine makes no progress in a prefill.
    most = PREFILL_SECONDS + SLACK_SECONDS
    async with serving(execution_timeout=most) as proxy, worker(proxy, progress_seconds=most):
        await asyncio.gather(*(_wait(proxy, name, tmp_path / name) for name in AGENTS))
        counts = await proxy.parts.view.counts(EndpointId("default"))
    assert (runs(counts), counts.completed) == (len(AGENTS), len(AGENTS))


async def _wait(proxy: Proxy, name: str, home: Path) -> None:
    prompt = scripted(answer="at last", fault=f"prefill:{PREFILL_SECONDS * 1000:.0f}")
    async with (
        outside() as watched,
        turn(AGENTS[name], home, watched, f"{proxy.url}/v1", prompt) as running,
    ):
        assert await running.ends(PREFILL_SECONDS + SLACK_SECONDS) == 0, running.text
    assert "at last" in running.text
    assert [word for word in REPEATS if word in running.text] == []
    assert watched.requests == []
