"""What a request to the scripted engine asks for: the request itself writes the script of its answer. Pure.

`max_tokens` is the number of tokens, `seed` the microseconds between them, and the text is made of the request's last
message: `"<message> 0 "`, `"<message> 1 "`, ... so that every stream's text is its own. The extra field `fault` breaks
something: `error_event:N`, `cut:N`, `die:N`, `engine_dead:N`, `hang:N` (after N tokens, 0 without; `deaf:N` hangs and
cannot be stopped), `status:CODE`, `big:BYTES` (an answer of that size), `head_delay:MILLISECONDS`.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

DEFAULT_TOKENS = 16
MAX_CONTEXT = 1_048_576  # tokens; more are refused in vLLM's words
FAULTS = ("error_event", "cut", "die", "engine_dead", "hang", "deaf", "status", "big", "head_delay")

Kind = Literal["chat", "completion"]
Json: TypeAlias = dict[str, Any]


class BadRequestError(ValueError):
    """The request is refused with 400; the text is for the client."""


@dataclass(frozen=True, slots=True)
class Script:
    """One answer: its text, length and pace, and what goes wrong in it."""

    kind: Kind
    model: str
    id: str
    text: str
    tokens: int
    pace: float  # seconds between tokens
    stream: bool
    usage: bool
    usage_each: bool = False  # with every token
    fault: str = ""
    fault_at: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.text.split())

    def token(self, index: int) -> str:
        return f"{self.text} {index} "

    def full_text(self) -> str:
        if self.fault == "big":
            return "x" * self.fault_at
        return "".join(self.token(index) for index in range(self.tokens))


def read_script(body: bytes, kind: Kind, default_model: str, answer_id: str) -> Script:
    """The script in a request's body; `BadRequestError` where vLLM would answer 400."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise BadRequestError(
            f"[{{'type': 'json_invalid', 'msg': 'JSON decode error: {error}'}}]"
        ) from None
    if not isinstance(request, dict):
        raise BadRequestError("Input should be a valid dictionary")
    tokens = _whole(request, "max_completion_tokens", _whole(request, "max_tokens", DEFAULT_TOKENS))
    text = _last_message(request) if kind == "chat" else _prompt(request)
    script_text = text or "token"
    if tokens + len(script_text.split()) > MAX_CONTEXT:
        raise BadRequestError(
            f"This model's maximum context length is {MAX_CONTEXT} tokens. However, you requested {tokens} output "
            f"tokens and your prompt contains {len(script_text.split())} input tokens. Please reduce the length of "
            "the input prompt or the number of requested output tokens."
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
        tokens=tokens,
        pace=_whole(request, "seed", 0) / 1e6,
        stream=request.get("stream") is True,
        usage=options.get("include_usage") is True,
        usage_each=options.get("continuous_usage_stats") is True,
        fault=fault,
        fault_at=int(value) if value.isdigit() else 0,
    )


def asks_to_hang(body: bytes) -> bool:
    """Whether a call that makes no tokens, such as `tokenize`, has the fault `hang`."""
    try:
        request = json.loads(body)
    except ValueError:
        return False
    return isinstance(request, dict) and request.get("fault") == "hang"


def error_body(message: str, kind: str = "BadRequestError", code: int = 400) -> bytes:
    """An error in vLLM's shape."""
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    ).encode()


def _whole(request: Json, name: str, default: int) -> int:
    value = request.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequestError(f"{name}: Input should be a valid integer, got {value!r}"[:200])
    return value


def _last_message(request: Json) -> str:
    messages = request.get("messages")
    if messages is None:
        raise BadRequestError(_invalid("missing", "Field required"))
    if not isinstance(messages, list) or not messages:
        raise BadRequestError(_invalid("list_type", "Input should be a valid list"))
    users = [
        message
        for message in messages
        if isinstance(message, dict) and message.get("role") == "user"
    ]
    content = (users or [{}])[-1].get("content")
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(str(part) for part in parts if part)
    return str(content or "")


def _invalid(kind: str, message: str) -> str:
    return f"1 validation error:\n  {{'type': '{kind}', 'loc': ('body', 'messages'), 'msg': '{message}'}}"


def _prompt(request: Json) -> str:
    prompt = request.get("prompt")
    if prompt is None:
        raise BadRequestError("Either prompt or prompt_embeds must be provided and non-empty.")
    if isinstance(prompt, list):
        prompt = prompt[-1] if prompt else ""
    return str(prompt)
