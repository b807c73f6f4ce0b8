"""The formats of messages that the proxy itself sends: errors and heartbeats.

vLLM has three dialects: OpenAI's chat and completions, OpenAI's responses, and Anthropic's
messages. Output of the engine is never translated.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec

from proxy.api.errors import ApiError

DONE_EVENT = b"data: [DONE]\n\n"
# A larger error of an engine is not parsed.
ENGINE_ERROR_MAX_BYTES = 64 * 1024

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Dialect(NamedTuple):
    """The formatting functions of one API."""

    # The JSON body of an error response.
    error: Callable[[ApiError], bytes]
    # The final events of a stream that fails with such a body.
    last_events: Callable[[bytes], bytes]
    # A heartbeat with a text, for the gap between two events of a stream.
    heartbeat: Callable[[str], bytes]


def _openai_error(error: ApiError) -> bytes:
    fields = {
        "message": error.message,
        "type": error.row.type,
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": fields})


def _openai_last_events(body: bytes) -> bytes:
    """Return the same events as vLLM for a failed stream."""
    return b"data: %b\n\n" % _one_line(body) + DONE_EVENT


def _responses_last_events(body: bytes) -> bytes:
    """Return the `error` event of the Responses API: the fields of the error object, flattened."""
    error: dict[str, object] = {}
    # An engine's error is not necessarily JSON.
    with suppress(msgspec.MsgspecError):
        if len(body) <= ENGINE_ERROR_MAX_BYTES:
            error = msgspec.json.decode(body, type=_ErrorBody).error
    defaults = {"type": "error", "code": None, "message": "", "param": None}
    event = defaults | error | {"type": "error", "sequence_number": 0}
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(event)


def _anthropic_error(error: ApiError) -> bytes:
    fields = {"type": ANTHROPIC_TYPES.get(error.row.status, "api_error"), "message": error.message}
    return msgspec.json.encode({"type": "error", "error": fields})


def _anthropic_last_events(body: bytes) -> bytes:
    return b"event: error\ndata: %b\n\n" % _one_line(body)


def _comment(text: str) -> bytes:
    """Return an SSE comment with one newline.

    Several clients treat a comment with two newlines as an event without data.
    """
    return b": %b\n" % text.encode()


def _ping(_: str) -> bytes:
    return b'event: ping\ndata: {"type": "ping"}\n\n'


def _one_line(body: bytes) -> bytes:
    """Return a JSON text on one line. Newlines occur only outside of strings, as whitespace."""
    return body.replace(b"\r", b" ").replace(b"\n", b" ")


class _ErrorBody(msgspec.Struct):
    error: dict[str, object] = {}


OPENAI = Dialect(_openai_error, _openai_last_events, _comment)
RESPONSES = Dialect(_openai_error, _responses_last_events, _comment)
ANTHROPIC = Dialect(_anthropic_error, _anthropic_last_events, _ping)
