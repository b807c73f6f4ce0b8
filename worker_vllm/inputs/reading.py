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

Sampling parameters become fields of an OpenAI request body. Their valid names come from the
engine's route if the engine knows them, otherwise from `SAMPLING_FIELDS`. The engine validates the
values: it rejects an invalid one with status 400 and names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

import msgspec

from worker_vllm.asgi import Request

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
SAMPLING_FIELDS = frozenset((
    "allowed_token_ids", "bad_words", "frequency_penalty", "ignore_eos",
    "include_stop_str_in_output", "length_penalty", "logit_bias", "logprobs", "max_tokens", "min_p",
    "min_tokens", "n", "presence_penalty", "prompt_logprobs", "repetition_penalty", "seed",
    "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids",
    "structured_outputs", "temperature", "thinking_token_budget", "top_k", "top_p",
    "truncate_prompt_tokens",
))  # fmt: skip
"""The fields that vLLM's SamplingParams and its request bodies have in common."""

# Fields of a request body that belong in `input` itself.
INPUT_FIELDS = frozenset({"messages", "model", "prompt", "stream", "stream_options"})
# Names in SamplingParams that differ from those in the request body.
RENAMED_FIELDS = {"extra_args": "vllm_xargs"}
# JSON values that count as absent.
EMPTY_VALUES = (b"", b"null", b"{}", b"[]", b'""', b"false", b"0")
FORMATS_MESSAGE = "input must be an object with `openai_route`, `route`, `prompt` or `messages`"

Fields: TypeAlias = dict[str, msgspec.Raw]
KnownFields: TypeAlias = Callable[[str], frozenset[str]]
"""Return the body fields of an engine's route; empty if the engine does not know."""


class BadInputError(ValueError):
    """The job's input is invalid. The text names the field and is for the client."""


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
    except msgspec.MsgspecError as error:
        raise BadInputError(f"input: {error}") from None
    except RecursionError:
        raise BadInputError("input is nested too deeply") from None


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
    body |= _sampling_fields(values.get("sampling_params"), known(path), is_chat=is_chat)
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    native = Native(stream, _choices(body))
    return Call(Request("POST", path, JSON_CONTENT_TYPE, msgspec.json.encode(body)), native)


def _sampling_fields(params: Any, known: frozenset[str], *, is_chat: bool) -> dict[str, Any]:
    """Return sampling parameters as fields of a request body.

    `known` are the fields of the route, or empty if the engine does not know them. Raises
    `BadInputError`.
    """
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise BadInputError("sampling_params: must be an object")
    allowed = (known or SAMPLING_FIELDS) - INPUT_FIELDS
    fields: dict[str, Any] = {}
    given: str
    for given, value in params.items():
        name = RENAMED_FIELDS.get(given) or given
        if given in INPUT_FIELDS:
            raise BadInputError(
                f"sampling_params.{given}: belongs in `input`, next to sampling_params"
            )
        if name not in allowed and not (known and given in RENAMED_FIELDS):
            raise BadInputError(f"sampling_params.{given[:100]}: unknown{_hint(given, allowed)}")
        if value is not None:
            fields[name] = value
    return _chat_logprobs(fields) if is_chat else fields


def _chat_logprobs(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert `logprobs`: a number in SamplingParams, a boolean and a number in a chat body."""
    count = fields.get("logprobs")
    if isinstance(count, int) and not isinstance(count, bool):
        return fields | {"logprobs": True, "top_logprobs": count}
    return fields


def _hint(given: str, allowed: frozenset[str]) -> str:
    # Former names of vLLM.
    if given.startswith("guided_"):
        return "; use structured_outputs instead"
    close = get_close_matches(given, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""


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
