"""aider, which uses chat completions through LiteLLM."""

from typing import Any, ClassVar

from harness.agents.aider import Aider
from harness.agents.stories import AgentStories


class TestAider(AgentStories):
    agent = Aider()
    # aider has no tools: it applies the files of an answer.
    tool: ClassVar[dict[str, Any]] = {
        "answer": "Here it is:\n\nmade.txt\n```\nmade\n```\n",
        "max_tokens": 5,
    }
    tool_runs = 1

    # A lost connection to the engine. The proxy forwards an engine's own error event unchanged, and
    # aider sends a call again after it.
    failure = "cut:2"
    sentence = "the engine"
