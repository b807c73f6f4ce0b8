"""The events that the proxy itself adds to a stream: heartbeats and errors.

The engine's own events are forwarded unchanged, between these. What is needed of them is read late:
`note` keeps the last small write, and it is parsed when a heartbeat or an error has to be sent. So
the events of tokens cost nothing more.
"""

import re
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from proxy.wire.sse import Event, last_start, read_events

DONE_EVENT = b"data: [DONE]\n\n"
# A larger error of an engine is not parsed.
ENGINE_ERROR_MAX_BYTES = 64 * 1024
# A larger write is read at once instead of being kept for later.
KEPT_WRITE_BYTES = 4096

# Codes of a failed response that the Codex CLI does not run again, and one that it does.
CONTEXT_TOO_LONG = "context_length_exceeded"
NOT_AGAIN = "invalid_prompt"
AGAIN = "server_error"
# The type of an error that programs with chat completions do not repeat.
NOT_AGAIN_IN_CHAT = "invalid_request_error"
# The words of engines for a prompt that does not fit; only some of them send a code.
_CONTEXT = re.compile(
    r"context[ _](?:length|size|window)|max_model_len|maximum (?:model|input) length", re.IGNORECASE
)
# A line that is not a comment.
_FIELD_LINE = re.compile(rb"(?:^|[\r\n])[^:\r\n]")
_NUMBER_FIELD = b'"sequence_number"'
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')
_RESPONSE_ID = re.compile(rb'"response"\s*:\s*\{\s*"id"\s*:\s*"([\w.-]{1,200})"')


class HeartbeatForm(StrEnum):
    """The form of a call's heartbeats, as the setting or the client names it."""

    AUTO = "auto"
    """The form that all known clients of the API understand."""
    CHUNK = "chunk"
    """Events of the API without content, as soon as the engine's first event was sent."""
    COMMENT = "comment"
    """SSE comments."""
    OFF = "off"
    """No heartbeats."""
    WHITESPACE = "whitespace"
    """Blanks before the JSON body of a call that is not streamed."""


StreamForm: TypeAlias = Literal["auto", "chunk", "comment", "off"]
"""The forms for streams, as the setting names them."""


class StreamedCall(NamedTuple):
    """The request id, model and creation time of a call, known before its engine answers."""

    id: str
    model: str
    created_at: int


class StreamEvents(Protocol):
    """Makes the proxy's own events in one stream."""

    def note(self, data: bytes) -> None:
        """Take bytes of the engine that were sent to the client."""

    def heartbeat(self, text: str) -> bytes:
        """Return a heartbeat for the gap between two events."""

    def failure(self, body: bytes, *, is_final: bool) -> bytes:
        """Return the last events of a stream that fails with the body of an error response.

        `is_final`: the call must not be repeated.
        """


class ChatEvents:
    """Chat and completions: comments and an error object, both in the form of vLLM."""

    def note(self, data: bytes) -> None:
        """Do nothing."""

    def heartbeat(self, text: str) -> bytes:
        return comment(text)

    def failure(self, body: bytes, *, is_final: bool) -> bytes:
        """Return the error object and `[DONE]`.

        The type of a final error is not `server_error`, because several programs repeat a call
        whose stream ends with that type. No header can tell them not to. The message repeats the
        type, because LiteLLM searches only the message for it.
        """
        if is_final:
            error = _error_of(body)
            if error.get("type") == AGAIN:
                message = f"{error.get('message', '')} ({NOT_AGAIN_IN_CHAT})".lstrip()
                error |= {"type": NOT_AGAIN_IN_CHAT, "message": message}
                body = msgspec.json.encode({"error": error})
        return b"data: %b\n\n" % one_line(body) + DONE_EVENT


class ChunkEvents(ChatEvents):
    """Chat and completions with heartbeats that are chunks without text.

    A chunk repeats the engine's `id`, `created` and `model`. So there are comments before its first
    chunk, and also after its last one, where a chunk would be out of place.
    """

    def __init__(self) -> None:
        self._latest = b""

    def note(self, data: bytes) -> None:
        if len(data) > KEPT_WRITE_BYTES:
            data = data[last_start(data) :]
        self._latest = data if len(data) <= KEPT_WRITE_BYTES else b""

    def heartbeat(self, text: str) -> bytes:
        last = Event(b"", b"")
        for event in read_events(self._latest):
            last = event
        try:
            chunk = _chunk_decoder.decode(last.data)
        except msgspec.MsgspecError:
            return comment(text)
        empty = _EMPTY_CHOICES.get(chunk.object)
        choice = next((one for one in chunk.choices if one.finish_reason is None), None)
        if empty is None or choice is None:
            return comment(text)
        fields = {
            "id": chunk.id,
            "object": chunk.object,
            "created": chunk.created,
            "model": chunk.model,
            "choices": [{"index": choice.index} | empty],
        }
        return b"data: %b\n\n" % msgspec.json.encode(fields)


class MessagesEvents:
    """Anthropic's messages."""

    def __init__(self, form: HeartbeatForm) -> None:
        self._has_pings = form is not HeartbeatForm.COMMENT

    def note(self, data: bytes) -> None:
        """Do nothing."""

    def heartbeat(self, text: str) -> bytes:
        return b'event: ping\ndata: {"type": "ping"}\n\n' if self._has_pings else comment(text)

    def failure(self, body: bytes, *, is_final: bool) -> bytes:  # noqa: ARG002 - not in this API
        return b"event: error\ndata: %b\n\n" % one_line(body)


class ResponsesEvents:
    """Responses. The official helpers accept no event before `response.created`, and one id only.

    So heartbeats are comments until the engine's first event has been sent. After that they are
    `keepalive` events, because some clients do not count comments as a sign of life. The
    `sequence_number` of a heartbeat is that of the engine's next event: the numbers never decrease.
    """

    def __init__(self, form: HeartbeatForm, call: StreamedCall) -> None:
        self._has_events = form is not HeartbeatForm.COMMENT
        self._has_begun = False
        self._id = f"resp_{call.id.removeprefix('req_')}"
        self._model = call.model
        self._created_at: int | float = call.created_at
        self._number = -1
        # A write whose numbers have not been read.
        self._unread = b""

    def note(self, data: bytes) -> None:
        if not self._has_begun and _FIELD_LINE.search(data):
            self._begin(data)
        # A comment must not replace events whose numbers were not read.
        if data.find(_NUMBER_FIELD) >= 0:
            self._unread = data
        if len(data) > KEPT_WRITE_BYTES:
            self._read_number()

    def heartbeat(self, text: str) -> bytes:
        if not self._has_begun or not self._has_events:
            return comment(text)
        fields = {"type": "keepalive", "sequence_number": self._next_number()}
        return _named(b"keepalive", fields)

    def failure(self, body: bytes, *, is_final: bool) -> bytes:
        """Return `error` and `response.failed`, after `response.created` if nothing was sent.

        `error` has the fields of the error object, and `response.failed` a code that tells clients
        if they may repeat the call.
        """
        number = self._next_number()
        error = _error_of(body)
        message = str(error.get("message") or "The call failed.")
        events = b""
        if not self._has_begun:
            events = self._lifecycle(b"response.created", number, "in_progress", None)
            number += 1
        code = error.get("code")
        fields = {
            "type": "error",
            "code": None if code is None else str(code),
            "message": message,
            "param": error.get("param"),
            "sequence_number": number,
        }
        events += _named(b"error", fields)
        is_too_long = code == CONTEXT_TOO_LONG or _CONTEXT.search(message) is not None
        reason = CONTEXT_TOO_LONG if is_too_long else NOT_AGAIN if is_final else AGAIN
        failed = {"code": reason, "message": message}
        return events + self._lifecycle(b"response.failed", number + 1, "failed", failed)

    def _begin(self, data: bytes) -> None:
        """Read the fields that later events of the proxy have to repeat."""
        self._has_begun = True
        for event in read_events(data):
            try:
                response = _lifecycle_decoder.decode(event.data).response
            except msgspec.MsgspecError:
                continue
            if response is not None:
                self._id = response.id or self._id
                self._model = response.model or self._model
                self._created_at = response.created_at or self._created_at
                return
        if found := _RESPONSE_ID.search(data):
            # The event is so large that it is sent in parts.
            self._id = found[1].decode()

    def _next_number(self) -> int:
        self._read_number()
        return self._number + 1

    def _read_number(self) -> None:
        numbers = _NUMBER.findall(self._unread)
        self._unread = b""
        if numbers:
            self._number = int(numbers[-1])

    def _lifecycle(
        self, name: bytes, number: int, status: str, error: dict[str, str] | None
    ) -> bytes:
        """Return an event with a response object: all fields that OpenAI's schema requires."""
        response: dict[str, object] = {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": False,
            "error": error,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": None,
            "metadata": {},
            "model": self._model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "truncation": "disabled",
            "usage": None,
        }
        fields = {"type": name.decode(), "sequence_number": number, "response": response}
        return _named(name, fields)


def comment(text: str) -> bytes:
    """Return each line of a text as an SSE comment with one newline.

    Several clients treat a comment with two newlines as an event without data. Only the first line
    has a space after the colon: programs that look for `: ` find one line for each heartbeat.
    """
    return b": %b\n" % text.replace("\n", "\n:").encode()


def one_line(body: bytes) -> bytes:
    """Return a JSON text on one line. Newlines occur only outside of strings, as whitespace."""
    return body.replace(b"\r", b" ").replace(b"\n", b" ")


def _named(name: bytes, fields: dict[str, object]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, msgspec.json.encode(fields))


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]


class _Response(msgspec.Struct):
    id: str = ""
    model: str = ""
    created_at: int | float = 0


class _Lifecycle(msgspec.Struct):
    response: _Response | None = None


class _ErrorBody(msgspec.Struct):
    error: dict[str, object] = {}


# The rest of a choice without text, by the kind of chunk.
_EMPTY_CHOICES: dict[str, dict[str, object]] = {
    "chat.completion.chunk": {"delta": {}, "logprobs": None, "finish_reason": None},
    "text_completion": {"text": "", "logprobs": None, "finish_reason": None},
}
_chunk_decoder = msgspec.json.Decoder(_Chunk)
_lifecycle_decoder = msgspec.json.Decoder(_Lifecycle)
_error_decoder = msgspec.json.Decoder(_ErrorBody)


def _error_of(body: bytes) -> dict[str, object]:
    """Return the error object of an error response; empty if it has another form."""
    if len(body) > ENGINE_ERROR_MAX_BYTES:
        return {}
    try:
        return _error_decoder.decode(body).error
    except (msgspec.MsgspecError, RecursionError):
        # An engine's error is not necessarily JSON.
        return {}
