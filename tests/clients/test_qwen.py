"""Qwen Code, which uses chat completions through OpenAI's client for Node."""

from typing import Any, ClassVar

from harness.agents.qwen import Qwen
from harness.agents.stories import AgentStories

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
