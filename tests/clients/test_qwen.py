"""Qwen Code, which uses chat completions through OpenAI's client for Node."""

from typing import Any, ClassVar

from harness.agents.qwen import Qwen
from harness.agents.stories import AgentStories, Place

ARGUMENTS = {
    "command": "echo made > made.txt",
    "is_background": False,
    "description": "Write a file.",
}


class TestQwenCode(AgentStories):
    agent = Qwen()
    tool: ClassVar[dict[str, Any]] = {
        "tool": {"name": "run_shell_command", "arguments": ARGUMENTS},
        "answer": "done",
    }

    async def test_a_lost_connection_in_the_middle_of_a_stream_is_shown(self, place: Place) -> None:
        """Qwen Code asks for a continuation of a stream that ends with a `server_error`."""
        before = await place.counts()
        async with place.turn(answer="half an answer", max_tokens=4, fault="cut:2") as turn:
            await turn.ends()
        assert "the engine" in turn.text
        self.assert_no_repeat(turn, await place.counts(), before, runs_wanted=1)
