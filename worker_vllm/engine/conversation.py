"""The conversation in a request to the scripted engine: the user's last text, and its script. Pure.

Programs whose request bodies a test cannot choose, such as coding agents, give the script in their
prompt: a JSON object with the fields of a script between `<script>` and `</script>`.
"""

import json
import re
from typing import Any, NamedTuple, TypeAlias

Json: TypeAlias = dict[str, Any]

_SCRIPT = re.compile(r"<script>(\{.*?\})</script>", re.DOTALL)


class Conversation(NamedTuple):
    """The last text of the user, and the script in the last text that has one.

    `has_tool_result` is True if a tool was called since that text.
    """

    text: str
    script: Json
    has_tool_result: bool


def read_conversation(items: list[Any]) -> Conversation:
    """Read the messages of a chat request, or the items of a request to the Responses API."""
    said = [(_role(item), _text(item)) for item in items if isinstance(item, dict)]
    text = next((text for role, text in reversed(said) if role == "user"), "")
    has_tool_result = False
    for role, one in reversed(said):
        has_tool_result = has_tool_result or role == "tool"
        if role == "user" and (found := _SCRIPT.search(one)):
            return Conversation(text, _decode(found[1]), has_tool_result)
    return Conversation(text, {}, has_tool_result)


def _role(item: Json) -> str:
    """Return the role of a message; `tool` for all results of tools in the Responses API."""
    return "tool" if str(item.get("type")).endswith("_call_output") else str(item.get("role"))


def _text(item: Json) -> str:
    content = item.get("content")
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(str(part) for part in parts if part)
    return str(content or "")


def _decode(text: str) -> Json:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}
