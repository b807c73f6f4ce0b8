"""OpenAI's Codex, which uses the Responses API."""

from dataclasses import replace
from typing import Any, ClassVar

from harness.agents.codex import Codex
from harness.agents.stories import AgentStories, Place


class TestCodex(AgentStories):
    agent = Codex()
    tool: ClassVar[dict[str, Any]] = {
        "tool": {"name": "exec_command", "arguments": {"cmd": "echo made > made.txt"}},
        "answer": "done",
    }
    failure = "cut:2"
    sentence = "the engine"

    async def test_a_failure_before_the_stream_is_shown(self, place: Place) -> None:
        """Codex sends a call again after every status of 500 or more, whatever the header says."""
        before = await place.counts()
        async with place.turn(answer="not sent", fault="status:500") as turn:
            await turn.ends()
        assert "scripted" in turn.text
        self.assert_no_repeat(turn, await place.counts(), before, runs_wanted=1)

    async def test_a_refused_websocket_is_tried_once(self, place: Place) -> None:
        dials = replace(place, agent=Codex("supports_websockets = true\n"))
        before = await place.counts()
        async with dials.turn(answer="over HTTP") as turn:
            assert await turn.ends() == 0, turn.text
        assert "over HTTP" in turn.text
        self.assert_no_repeat(turn, await place.counts(), before, runs_wanted=1)
