"""How an API speaks of what this proxy itself has to say: its errors, and that it is still alive.

vLLM answers in three dialects: OpenAI's chat and completions, OpenAI's responses, and Anthropic's messages. What the
engine sends is never translated; these are for what comes from here.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from proxy.api.errors import ApiError

DONE = b"data: [DONE]\n\n"
ERROR_BYTES = 64 * 1024  # of an engine's error that is read

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
    """One way to speak."""

    error: Callable[[ApiError], bytes]  # the JSON body of an error answer
    last_events: Callable[[bytes], bytes]  # such a body as the end of a stream
    heartbeat: Callable[[str], bytes]  # between two events of a stream


def _openai_error(error: ApiError) -> bytes:
    told = {
        "message": error.message,
        "type": error.row.type,
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": told})


def _openai_last_events(body: bytes) -> bytes:
    """As vLLM ends a stream that failed."""
    return b"data: %b\n\n" % _one_line(body) + DONE


def _responses_last_events(body: bytes) -> bytes:
    """The `error` event of the Responses API: the fields of the error object, flat."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error if len(body) <= ERROR_BYTES else {}
    except msgspec.MsgspecError:
        error = {}  # what an engine answers need not be JSON
    event = (
        {"type": "error", "code": None, "message": "", "param": None} | error | {"type": "error"}
    )
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(event | {"sequence_number": 0})


def _anthropic_error(error: ApiError) -> bytes:
    told = {"type": ANTHROPIC_TYPES.get(error.row.status, "api_error"), "message": error.message}
    return msgspec.json.encode({"type": "error", "error": told})


def _anthropic_last_events(body: bytes) -> bytes:
    return b"event: error\ndata: %b\n\n" % _one_line(body)


def _comment(text: str) -> bytes:
    """An SSE comment with ONE newline: with two, several clients take it for an event without data."""
    return b": %b\n" % text.encode()


def _ping(_: str) -> bytes:
    return b'event: ping\ndata: {"type": "ping"}\n\n'


def _one_line(body: bytes) -> bytes:
    """A JSON text on one line: outside of strings, where a newline cannot stand, its newlines mean nothing."""
    return body.replace(b"\r", b" ").replace(b"\n", b" ")


class _ErrorBody(msgspec.Struct):
    error: dict[str, object] = {}


OPENAI = Dialect(_openai_error, _openai_last_events, _comment)
RESPONSES = Dialect(_openai_error, _responses_last_events, _comment)
ANTHROPIC = Dialect(_anthropic_error, _anthropic_last_events, _ping)
