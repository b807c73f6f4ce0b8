"""The stories that each coding agent passes, as a base class.

A run on the engine is a job of the proxy, plus one for each time that a job was repeated.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest_asyncio

from harness.agents.agent import Agent, Turn, scripted, turn
from harness.agents.outside import Outside, outside
from harness.proxy.server import Proxy, serving
from harness.tools.waiting import until
from harness.worker.process import WorkerProcess, worker
from proxy.jobs.model import Counts, EndpointId

# Heartbeats are much more frequent than the silence that the agents accept in these stories.
HEARTBEATS = {"heartbeat_first": 0.3, "heartbeat_queued": 0.3, "heartbeat_silent": 0.3}
SILENCE_SECONDS = 2.0
PREFILL_MILLISECONDS = 3_500
# From Ctrl-C to an idle engine, which includes the reaction of the agent.
STOP_SECONDS = 5.0
TURN_SECONDS = 60.0
# The words with which the agents announce that they send a call again.
REPEATS = ("Reconnecting", "Retrying", "retrying")


@dataclass(frozen=True)
class Place:
    """A proxy with one worker, and the home directory of an agent on the same machine."""

    agent: Agent
    proxy: Proxy
    worker: WorkerProcess
    home: Path
    outside: Outside

    def turn(
        self, *, silence: float | None = None, **script: Any
    ) -> AbstractAsyncContextManager[Turn]:
        """Run a turn of the agent with this script."""
        return turn(
            self.agent, self.home, self.outside, f"{self.proxy.url}/v1", scripted(**script),
            silence=silence,
        )  # fmt: skip

    async def counts(self) -> Counts:
        return await self.proxy.parts.view.counts(EndpointId("default"))

    async def is_idle(self) -> bool:
        """Return True if the engine is running nothing."""
        return await self.worker.metric(self.proxy.http, "num_requests_running") == 0


@asynccontextmanager
async def place(agent: Agent) -> AsyncIterator[Place]:
    """Run a proxy and a worker, and check that the agent has contacted nothing else."""
    with TemporaryDirectory() as home:
        async with outside() as watched, serving(**HEARTBEATS) as proxy, worker(proxy) as one:
            yield Place(agent, proxy, one, Path(home), watched)
            assert watched.requests == []


def runs(counts: Counts, before: Counts | None = None) -> int:
    """Return the number of runs on the engine, without those that had already begun `before`."""
    known = 0 if before is None else runs(before)
    ended = counts.completed + counts.failed + counts.cancelled + counts.timed_out
    return ended + counts.in_progress + counts.retried - known


class AgentStories:
    """The stories. A subclass has the agent, and overrides what is different for it."""

    agent: ClassVar[Agent]
    # The script of a turn that writes `made` into the file `made.txt`, and the runs that it takes.
    tool: ClassVar[dict[str, Any]]
    tool_runs: ClassVar[int] = 2
    # A failure in the middle of a stream, and the sentence that the user reads.
    failure: ClassVar[str] = "error_event:2"
    sentence: ClassVar[str] = "scripted failure"

    @pytest_asyncio.fixture(scope="class")
    @classmethod
    async def place(cls) -> AsyncIterator[Place]:
        cls.agent.command()
        async with place(cls.agent) as found:
            yield found

    async def test_a_turn_with_text_is_one_run(self, place: Place) -> None:
        before = await place.counts()
        async with place.turn(answer="the whole answer", max_tokens=3) as turn:
            assert await turn.ends() == 0, turn.text
        assert "the whole answer" in turn.text
        self.assert_no_repeat(turn, await place.counts(), before, runs_wanted=1)

    async def test_a_tool_is_called(self, place: Place) -> None:
        before = await place.counts()
        async with place.turn(**self.tool) as turn:
            assert await turn.ends() == 0, turn.text
        assert (place.home / "work" / "made.txt").read_text().strip() == "made"
        self.assert_no_repeat(turn, await place.counts(), before, runs_wanted=self.tool_runs)

    async def test_a_long_prefill_is_waited_for(self, place: Place) -> None:
        """The prefill takes longer than the silence that the agent accepts."""
        before = await place.counts()
        fault = f"prefill:{PREFILL_MILLISECONDS}"
        async with place.turn(silence=SILENCE_SECONDS, answer="late", fault=fault) as turn:
            assert await turn.ends() == 0, turn.text
        assert "late" in turn.text
        self.assert_no_repeat(turn, await place.counts(), before, runs_wanted=1)

    async def test_a_start_without_workers_is_waited_for(self, place: Place) -> None:
        async with serving(**HEARTBEATS) as proxy:
            alone = Place(place.agent, proxy, place.worker, place.home, place.outside)
            async with alone.turn(answer="at last") as turn:
                await until(
                    lambda: len(proxy.parts.interactive) == 1, TURN_SECONDS, "the call waits"
                )
                async with worker(proxy):
                    assert await turn.ends() == 0, turn.text
            counts = await alone.counts()
        assert "at last" in turn.text
        self.assert_no_repeat(turn, counts, Counts(), runs_wanted=1)

    async def test_a_stop_by_the_user_frees_the_engine(self, place: Place) -> None:
        before = await place.counts()
        async with place.turn(answer="on " * 1_000, max_tokens=3_000, seed=20_000) as turn:
            await until(lambda: self._is_running(place), TURN_SECONDS, "the engine is generating")
            turn.interrupt()
            await until(place.is_idle, STOP_SECONDS, "the engine is idle")
            await turn.ends()
        await until(lambda: not len(place.proxy.parts.interactive), what="the call is over")
        counts = await place.counts()
        assert counts.cancelled == before.cancelled + 1
        self.assert_no_repeat(turn, counts, before, runs_wanted=1)

    async def test_a_failure_in_the_middle_of_a_stream_is_shown(self, place: Place) -> None:
        before = await place.counts()
        async with place.turn(answer="half an answer", max_tokens=4, fault=self.failure) as turn:
            await turn.ends()
        assert self.sentence in turn.text
        self.assert_no_repeat(turn, await place.counts(), before, runs_wanted=1)

    @staticmethod
    def assert_no_repeat(turn: Turn, counts: Counts, before: Counts, *, runs_wanted: int) -> None:
        assert [word for word in REPEATS if word in turn.text] == [], turn.text
        assert runs(counts, before) == runs_wanted, turn.text

    @staticmethod
    async def _is_running(place: Place) -> bool:
        return not await place.is_idle()
