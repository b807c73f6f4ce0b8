"""Convert a job's `input` into a request to the engine. Pure.

| input | request to the engine |
|---|---|
| `{"openai_route": "/v1/…", "openai_input": {…}}` | POST of that body; GET without one |
| `{"route": "/v1/…", "body": {…}, "method": "POST"}` | the same for any route |
| `{"prompt": …, "sampling_params": {…}, "stream": bool}` | `/v1/completions` |
| `{"messages": […], "sampling_params": {…}, "stream": bool}` | `/v1/chat/completions` |

A body is forwarded with its bytes unchanged. Without `method` a request with a body is a POST.
The formats are those of Runpod's worker-vllm image. Unknown keys are ignored, as in that image;
invalid values are rejected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from worker_vllm.asgi import Request
from worker_vllm.inputs.sampling import BadInputError, sampling_fields

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JSON_CONTENT_TYPE = "application/json"
# Default of `max_tokens` for a prompt. vLLM's own default of 16 truncates nearly every answer.
PROMPT_MAX_TOKENS_DEFAULT = 100
METHODS = ("GET", "POST", "DELETE")
NATIVE_FIELDS = (
    "prompt",
    "messages",
    "sampling_params",
    "stream",
    "model",
    "apply_chat_template",
)
# JSON values that count as absent.
EMPTY_VALUES = (b"", b"null", b"{}", b"[]", b'""', b"false", b"0")
FORMATS_MESSAGE = "input must be an object with `openai_route`, `route`, `prompt` or `messages`"

Fields: TypeAlias = dict[str, msgspec.Raw]
KnownFields: TypeAlias = Callable[[str], frozenset[str]]
"""Return the body fields of an engine's route; empty if the engine does not know."""


@dataclass(frozen=True, slots=True)
class Native:
    """The expected format of the response to a native request."""

    is_stream: bool
    # Number of texts in a response.
    choices: int


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the engine.

    `native` is None if the engine's own response is the job's output.
    """

    request: Request
    native: Native | None = None


def read_input(raw: bytes, model: str, known: KnownFields) -> Call:
    """Return the request of a job's input, which is JSON.

    Raises `BadInputError`, which names the invalid field.
    """
    try:
        return _read(raw, model, known)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadInputError(f"input: {error}") from None


def _read(raw: bytes, model: str, known: KnownFields) -> Call:
    if not raw.lstrip().startswith(b"{"):
        raise BadInputError(FORMATS_MESSAGE)
    fields = msgspec.json.decode(raw, type=Fields)
    if _has(fields, "openai_input"):
        route = _text(fields, "openai_route") or CHAT
        return Call(_request(route, "POST", bytes(fields["openai_input"])))
    if _has(fields, "openai_route"):
        return Call(_request(_text(fields, "openai_route"), "GET", b""))
    if _has(fields, "route"):
        body = bytes(fields["body"]) if _has(fields, "body") else b""
        return Call(_request(_text(fields, "route"), _method(fields, body), body))
    if "prompt" in fields or "messages" in fields:
        return _native(fields, model, known)
    raise BadInputError(FORMATS_MESSAGE)


def _request(route: str, method: str, body: bytes) -> Request:
    path = route.removeprefix("/openai")
    if not path.startswith("/"):
        raise BadInputError(f"route: must begin with `/`, such as {CHAT}, but is {route[:100]!r}")
    return Request(method, path, JSON_CONTENT_TYPE if body else "", body)


def _method(fields: Fields, body: bytes) -> str:
    method = _text(fields, "method").upper() or ("POST" if body else "GET")
    if method not in METHODS:
        raise BadInputError(f"method: must be one of {', '.join(METHODS)}, but is {method[:20]!r}")
    return method


def _native(fields: Fields, model: str, known: KnownFields) -> Call:
    values: dict[str, Any] = {
        name: msgspec.json.decode(fields[name]) for name in NATIVE_FIELDS if name in fields
    }
    prompt = values.get("prompt")
    messages = values.get("messages")
    if (prompt is None) == (messages is None):
        raise BadInputError("prompt, messages: give one of them, not both")
    stream = values.get("stream") or False
    if not isinstance(stream, bool):
        raise BadInputError("stream: must be true or false")
    if prompt is not None and values.get("apply_chat_template") is True:
        if not isinstance(prompt, str):
            raise BadInputError("prompt: must be a text if apply_chat_template is true")
        messages = [{"role": "user", "content": prompt}]
    body: dict[str, Any] = {"model": values.get("model") or model}
    if messages is None:
        path = COMPLETIONS
        body |= {"max_tokens": PROMPT_MAX_TOKENS_DEFAULT, "prompt": prompt}
    else:
        path = CHAT
        body |= {"messages": messages}
    is_chat = messages is not None
    body |= sampling_fields(values.get("sampling_params"), known(path), is_chat=is_chat)
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    native = Native(stream, _choices(body))
    return Call(Request("POST", path, JSON_CONTENT_TYPE, msgspec.json.encode(body)), native)


def _choices(body: dict[str, Any]) -> int:
    """Return the number of texts in the response: `n` per prompt. A list of ints is one prompt."""
    n = body.get("n")
    per_prompt = n if isinstance(n, int) and n > 0 else 1
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return per_prompt * len(prompt)
    return per_prompt


def _has(fields: Fields, name: str) -> bool:
    return bytes(fields.get(name, b"")).strip() not in EMPTY_VALUES


def _text(fields: Fields, name: str) -> str:
    if name not in fields:
        return ""
    try:
        return msgspec.json.decode(fields[name], type=str | None) or ""
    except msgspec.ValidationError:
        raise BadInputError(f"{name}: must be a text") from None
