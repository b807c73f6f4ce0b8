"""The formats of messages that the proxy itself sends: errors, and its own events in a stream.

vLLM has three dialects: OpenAI's chat and completions, OpenAI's responses, and Anthropic's
messages. Output of the engine is never translated.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from proxy.api.errors import ApiError
from proxy.api.openai.stream_events import (
    ChatEvents,
    ChunkEvents,
    HeartbeatForm,
    MessagesEvents,
    ResponsesEvents,
    StreamedCall,
    StreamEvents,
)

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
    # The maker of the proxy's own events in a stream.
    events: Callable[[HeartbeatForm, StreamedCall], StreamEvents]
    # The forms of heartbeats for which the engine's events have to be noted.
    noted_forms: tuple[HeartbeatForm, ...] = ()
    # Errors that must not be retried are sent as events, because clients do not read the header.
    has_late_errors: bool = False


def _openai_error(error: ApiError) -> bytes:
    fields = {
        "message": error.message,
        "type": error.row.type,
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": fields})


def _openai_events(form: HeartbeatForm, _: StreamedCall) -> StreamEvents:
    return ChunkEvents() if form is HeartbeatForm.CHUNK else ChatEvents()


def _anthropic_error(error: ApiError) -> bytes:
    fields = {"type": ANTHROPIC_TYPES.get(error.row.status, "api_error"), "message": error.message}
    return msgspec.json.encode({"type": "error", "error": fields})


OPENAI = Dialect(_openai_error, _openai_events, (HeartbeatForm.CHUNK,))
RESPONSES = Dialect(_openai_error, ResponsesEvents, tuple(HeartbeatForm), has_late_errors=True)
ANTHROPIC = Dialect(_anthropic_error, lambda form, _: MessagesEvents(form))
