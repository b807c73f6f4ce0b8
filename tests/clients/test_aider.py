"""aider, which uses chat completions through LiteLLM."""

from typing import Any, ClassVar

from harness.agents.aider import Aider
from harness.agents.stories import AgentStories, Place, runs


class TestAider(AgentStories):
    agent = Aider()
    # aider has no tools: it applies the files of an answer.
    tool: ClassVar[dict[str, Any]] = {
        "answer": "Here it is:\n\nmade.txt\n```\nmade\n```\n",
        "max_tokens": 5,
    }
    tool_runs = 1

    async def test_a_failure_in_the_middle_of_a_stream_is_shown(self, place: Place) -> None:
        """Aider sends a call again after every error of a stream, for a minute.

        The proxy itself repeats nothing.
        """
        before = await place.counts()
        async with place.turn(answer="half an answer", max_tokens=4, fault=self.failure) as turn:
            await turn.command.says("Retrying in", 60)
            turn.interrupt()
            await turn.ends()
        counts = await place.counts()
        assert self.sentence in turn.text
        assert counts.retried == before.retried
        assert runs(counts, before) == counts.failed - before.failed
