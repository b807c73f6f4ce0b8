"""A job's `input`, read as the engine call that it stands for. Pure.

| input | call |
|---|---|
| `{"openai_route": "/v1/…", "openai_input": {…}}` | POST of that body, bytes untouched; without a body a GET |
| `{"route": "/v1/…", "body": {…}, "method": "POST"}` | the same for any route; without `method` as above |
| `{"prompt": …, "sampling_params": {…}, "stream": bool}` | `/v1/completions` |
| `{"messages": […], "sampling_params": {…}, "stream": bool}` | `/v1/chat/completions` |

The shapes are those of Runpod's worker-vllm image. Other keys are ignored, as there; wrong values are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from worker_vllm.asgi import Request
from worker_vllm.inputs.sampling import BadInputError, sampling_fields

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
JSON = "application/json"
PROMPT_TOKENS = (
    100  # `max_tokens` of a bare prompt; vLLM's own default of 16 cuts nearly every answer
)
METHODS = ("GET", "POST", "DELETE")
NOTHING = (b"", b"null", b"{}", b"[]", b'""', b"false", b"0")
SHAPES = "input must be an object with `openai_route`, `route`, `prompt` or `messages`"

Fields: TypeAlias = dict[str, msgspec.Raw]
KnownFields: TypeAlias = Callable[[str], frozenset[str]]
"""The body fields that an engine's route knows; none if it cannot tell."""


@dataclass(frozen=True, slots=True)
class Native:
    """What a native call's answer is to look like."""

    is_stream: bool
    choices: int  # texts of one answer


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask the engine. `native` is None where the engine's own answer is the job's output."""

    request: Request
    native: Native | None = None


def read_input(raw: bytes, model: str, known: KnownFields) -> Call:
    """The call in a job's input (JSON bytes); `BadInputError` names the field that is wrong."""
    try:
        return _read(raw, model, known)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadInputError(f"input: {error}") from None


def _read(raw: bytes, model: str, known: KnownFields) -> Call:
    if not raw.lstrip().startswith(b"{"):
        raise BadInputError(SHAPES)
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
    raise BadInputError(SHAPES)


def _request(route: str, method: str, body: bytes) -> Request:
    path = route.removeprefix("/openai")
    if not path.startswith("/"):
        raise BadInputError(f"route: must begin with `/`, such as {CHAT}, and is {route[:100]!r}")
    return Request(method, path, JSON if body else "", body)


def _method(fields: Fields, body: bytes) -> str:
    method = _text(fields, "method").upper() or ("POST" if body else "GET")
    if method not in METHODS:
        raise BadInputError(f"method: must be one of {', '.join(METHODS)}, and is {method[:20]!r}")
    return method


def _native(fields: Fields, model: str, known: KnownFields) -> Call:
    values: dict[str, Any] = {
        name: msgspec.json.decode(fields[name])
        for name in (
            "prompt",
            "messages",
            "sampling_params",
            "stream",
            "model",
            "apply_chat_template",
        )
        if name in fields
    }
    prompt, messages = values.get("prompt"), values.get("messages")
    if (prompt is None) == (messages is None):
        raise BadInputError("prompt, messages: give one of them")
    stream = values.get("stream") or False
    if not isinstance(stream, bool):
        raise BadInputError("stream: must be true or false")
    if prompt is not None and values.get("apply_chat_template") is True:
        if not isinstance(prompt, str):
            raise BadInputError("prompt: must be a text where apply_chat_template is true")
        prompt, messages = None, [{"role": "user", "content": prompt}]
    path = COMPLETIONS if messages is None else CHAT
    body: dict[str, Any] = {"model": values.get("model") or model}
    body |= (
        {"max_tokens": PROMPT_TOKENS, "prompt": prompt}
        if messages is None
        else {"messages": messages}
    )
    body |= sampling_fields(
        values.get("sampling_params"), known(path), is_chat=messages is not None
    )
    if stream:
        body |= {
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    native = Native(stream, _choices(body))
    return Call(Request("POST", path, JSON, msgspec.json.encode(body)), native)


def _choices(body: dict[str, Any]) -> int:
    n, prompt = body.get("n"), body.get("prompt")
    prompts = (
        len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    )
    return (n if isinstance(n, int) and n > 0 else 1) * prompts


def _has(fields: Fields, name: str) -> bool:
    return bytes(fields.get(name, b"")).strip() not in NOTHING


def _text(fields: Fields, name: str) -> str:
    try:
        return msgspec.json.decode(fields[name], type=str | None) or "" if name in fields else ""
    except msgspec.ValidationError:
        raise BadInputError(f"{name}: must be a text") from None
