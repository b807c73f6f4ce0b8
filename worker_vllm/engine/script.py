"""The scripts of the scripted engine: each request defines its own response. Pure.

`max_tokens` is the number of tokens, `seed` the microseconds between them, and the text is derived
from the request's last message: `"<message> 0 "`, `"<message> 1 "`, ... so that every stream has a
text of its own. The extra field `fault` injects a fault: `error_event:N`, `cut:N`, `die:N`,
`engine_dead:N`, `hang:N` (after N tokens, 0 by default; `deaf:N` hangs and ignores cancellation),
`status:CODE`, `big:BYTES` (a response of that size), `head_delay:MILLISECONDS`, and
`prefill:MILLISECONDS` (between the response head and the first token).

`answer` replaces the text: this text, in `max_tokens` pieces. `tool` is a tool to call, with `name`
and `arguments`; the request that contains its result is answered with text. All fields can also be
given in the prompt: see `conversation.py`.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from worker_vllm.engine.conversation import Conversation, Json, read_conversation

DEFAULT_TOKENS = 16
# Requests with more tokens are rejected with vLLM's message.
CONTEXT_MAX_TOKENS = 1_048_576
# Longest message about an invalid field.
MESSAGE_MAX_LENGTH = 200
FAULTS = (
    "error_event", "cut", "die", "engine_dead", "hang", "deaf", "status", "big", "head_delay",
    "prefill",
)  # fmt: skip
# The fields of a request that limit the number of tokens, in order of precedence.
TOKEN_FIELDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")

Kind = Literal["chat", "completion", "response"]


class BadRequestError(ValueError):
    """The request is rejected with status 400. The text is for the client."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the client's tools. `arguments` is a JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Script:
    """A response: its text or tool call, length, pace and fault."""

    kind: Kind
    model: str
    id: str
    text: str
    tokens: int
    # Seconds between tokens.
    pace: float
    stream: bool
    # Whether the stream ends with the usage.
    usage: bool
    # Whether every token carries the usage so far.
    usage_each: bool = False
    fault: str = ""
    fault_at: int = 0
    # The text of the response; None if it is derived from `text`.
    answer: str | None = None
    tool: ToolCall | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.text.split())

    def token(self, index: int) -> str:
        if self.answer is None:
            return f"{self.text} {index} "
        size = len(self.answer)
        return self.answer[index * size // self.tokens : (index + 1) * size // self.tokens]

    def full_text(self) -> str:
        if self.fault == "big":
            return "x" * self.fault_at
        return "".join(self.token(index) for index in range(self.tokens))


def read_script(body: bytes, kind: Kind, default_model: str, answer_id: str) -> Script:
    """Return the script of a request body.

    Raises `BadRequestError` where vLLM responds with status 400.
    """
    try:
        request = json.loads(body)
    except ValueError as error:
        raise BadRequestError(
            f"[{{'type': 'json_invalid', 'msg': 'JSON decode error: {error}'}}]"
        ) from None
    if not isinstance(request, dict):
        raise BadRequestError("Input should be a valid dictionary")
    said = _conversation(request, kind)
    # The fields in the prompt are first, and replace those of the request.
    request = said.script | {name: request[name] for name in request if name not in said.script}
    answer = request.get("answer")
    is_answer = isinstance(answer, str)
    tokens = _tokens(request, said.script, 1 if is_answer else DEFAULT_TOKENS)
    tool = None if said.has_tool_result else _tool(request.get("tool"))
    script_text = said.text or "token"
    if tokens + len(script_text.split()) > CONTEXT_MAX_TOKENS:
        raise BadRequestError(
            f"This model's maximum context length is {CONTEXT_MAX_TOKENS} tokens. However, you "
            f"requested {tokens} output tokens and your prompt contains "
            f"{len(script_text.split())} input tokens. Please reduce the length of the input "
            "prompt or the number of requested output tokens."
        )
    fault, _, value = str(request.get("fault") or "").partition(":")
    if fault and fault not in FAULTS:
        raise BadRequestError(f"fault must be one of {', '.join(FAULTS)}")
    given = request.get("stream_options")
    options = given if isinstance(given, dict) else {}
    return Script(
        kind=kind,
        id=answer_id,
        model=str(request.get("model") or default_model),
        text=script_text,
        tokens=0 if tool else tokens,
        pace=_natural(request, "seed", 0) / 1e6,
        stream=request.get("stream") is True,
        usage=options.get("include_usage") is True,
        usage_each=options.get("continuous_usage_stats") is True,
        fault=fault,
        fault_at=int(value) if value.isdigit() else 0,
        answer=answer if is_answer else None,
        tool=tool,
    )


def asks_to_hang(body: bytes) -> bool:
    """Return True if a request without tokens, such as `tokenize`, has the fault `hang`."""
    try:
        request = json.loads(body)
    except ValueError:
        return False
    return isinstance(request, dict) and request.get("fault") == "hang"


def error_body(message: str, kind: str = "BadRequestError", code: int = 400) -> bytes:
    """Return an error response in vLLM's format."""
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    ).encode()


def _natural(request: Json, name: str, default: int) -> int:
    value = request.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequestError(
            f"{name}: Input should be a valid integer, got {value!r}"[:MESSAGE_MAX_LENGTH]
        )
    return value


def _tokens(request: Json, script: Json, default: int) -> int:
    if "max_tokens" in script:
        return _natural(script, "max_tokens", default)
    for name in TOKEN_FIELDS:
        if request.get(name) is not None:
            return _natural(request, name, default)
    return default


def _tool(given: Any) -> ToolCall | None:
    if not isinstance(given, dict):
        return None
    return ToolCall(str(given.get("name")), json.dumps(given.get("arguments") or {}))


def _conversation(request: Json, kind: Kind) -> Conversation:
    if kind == "completion":
        return Conversation(_prompt(request), {}, has_tool_result=False)
    name = "messages" if kind == "chat" else "input"
    items = request.get(name)
    if items is None:
        raise BadRequestError(_invalid("missing", name, "Field required"))
    if isinstance(items, str) and kind == "response":
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise BadRequestError(_invalid("list_type", name, "Input should be a valid list"))
    return read_conversation(items)


def _invalid(kind: str, name: str, message: str) -> str:
    detail = f"{{'type': '{kind}', 'loc': ('body', '{name}'), 'msg': '{message}'}}"
    return f"1 validation error:\n  {detail}"


def _prompt(request: Json) -> str:
    prompt = request.get("prompt")
    if prompt is None:
        raise BadRequestError("Either prompt or prompt_embeds must be provided and non-empty.")
    if isinstance(prompt, list):
        prompt = prompt[-1] if prompt else ""
    return str(prompt)
