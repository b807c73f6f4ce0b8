"""Conversion of the output of worker-vllm, old or new, to the HTTP response of its engine.

A complete response is the only element of a list. A stream arrives as strings with parts of the
event stream, split at any byte, or as objects with the data of one event each. Clients receive
complete events, except for events that are too large to buffer: their parts are passed on as they
arrive. Nothing in this module does I/O or depends on a job.

`job-done` and `job-stream` requests are decoded without parsing their values, which stay the same
bytes.

The HTTP status of a failed OpenAI call is recovered from the error text. worker-vllm loses it: the
SDK converts its error object to its Python representation. Newer images put the engine's status
into the message; older ones have it as `code`.
"""

import ast
import re
from typing import Any, NamedTuple

import msgspec

from proxy.jobs.lifecycle import Status
from proxy.jobs.model import EVENT_STREAM, Head
from proxy.service.json_text import (
    INLINE_MAX_BYTES,
    OUTPUT_MAX_STEPS,
    has_too_much,
    in_thread_if_large,
    utf8_fault,
)
from proxy.wire.sse import Events, Part, carries_error, end_start

ABSENT = msgspec.Raw(b"")
NULL = b"null"
TRUE = b"true"
# The maximum size of an error. A larger one is truncated and not parsed.
ERROR_MAX_BYTES = 256 * 1024
# The maximum size of a result whose NaN and Infinity are replaced. A larger one takes too long.
REPAIR_MAX_BYTES = 4 * 1024 * 1024
# The maximum number of elements of a list that is split: each costs about 100 bytes of overhead.
LIST_MAX_ELEMENTS = 250_000
IN_PROGRESS = b'"%b"' % Status.IN_PROGRESS.encode()

_NO_NUMBER = re.compile(rb'("(?:[^"\\]++|\\.)*+")|-?Infinity|NaN', re.DOTALL)


class TooManyElementsError(ValueError):
    """A list has more than `LIST_MAX_ELEMENTS` elements."""


class Result(msgspec.Struct):
    """The body of a `job-done` or `job-stream` request."""

    output: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    status: msgspec.Raw = ABSENT
    stop_pod: msgspec.Raw = msgspec.field(default=ABSENT, name="stopPod")

    @property
    def is_progress(self) -> bool:
        """Return True for a progress report, which does not end the job."""
        return bytes(self.status) == IN_PROGRESS

    @property
    def refreshes(self) -> bool:
        """Return True if the worker asks to be restarted after this job."""
        return bytes(self.stop_pod) == TRUE

    @property
    def has_failed(self) -> bool:
        """Return True if the handler reported an error."""
        return bytes(self.error) not in {b"", NULL}

    @property
    def value(self) -> bytes:
        """The output as JSON; `null` if the handler returned nothing or `{}`."""
        return bytes(self.output) or NULL


_decoder = msgspec.json.Decoder(Result)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
# Fails at the second element.
_one_decoder = msgspec.json.Decoder(tuple[msgspec.Raw])


async def read_result(body: bytes) -> Result | None:
    """Return the result in a body, or None if the body is invalid."""
    return await in_thread_if_large(_read, body)


def _read(body: bytes) -> Result | None:
    if utf8_fault(body) is not None or has_too_much(body, OUTPUT_MAX_STEPS):
        return None
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        pass
    if len(body) > REPAIR_MAX_BYTES:
        return None
    try:
        # The SDK encodes with Python's `json`, which writes NaN and Infinity. JSON has neither.
        return _decoder.decode(_NO_NUMBER.sub(lambda found: found[1] or NULL, body))
    except (msgspec.MsgspecError, RecursionError):
        return None


def elements(value: bytes) -> list[bytes] | None:
    """Return the unparsed elements of a JSON list, or None if the value is not a list.

    Raises `TooManyElementsError`.
    """
    if value[:1] != b"[":
        return None
    try:  # most responses have one element, of any size
        return [bytes(_one_decoder.decode(value)[0])]
    except msgspec.ValidationError:
        pass
    if value.count(b",") >= LIST_MAX_ELEMENTS:
        raise TooManyElementsError
    return [bytes(element) for element in _list_decoder.decode(value)]


def error_text(error: bytes) -> str:
    """Return an error as a string, as clients require; for other JSON values, their JSON text."""
    if len(error) > ERROR_MAX_BYTES:
        return error[:ERROR_MAX_BYTES].decode(errors="replace")
    value = msgspec.json.decode(error)
    return value if isinstance(value, str) else error.decode()


# The maximum length of an error in Python's notation that is parsed, at 100 ns per character.
PYTHON_ERROR_MAX_CHARACTERS = 32 * 1024
FIRST_ERROR, LAST_ERROR = 400, 599
# A worker that reports this error keeps running and fails every later job.
ENGINE_ENDED_TEXT = "vLLM server process is not running"

_UPSTREAM = re.compile(r"vLLM returned HTTP (\d{3}): (.*)", re.DOTALL)
_PIECE = re.compile(
    r"""(?P<text>'(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+")|[A-Za-z]++|.""", re.DOTALL
)
_NAMES = {"None": b"null", "True": b"true", "False": b"false", "(": b"[", ")": b"]"}
_TRACE = re.compile(r"handler: (.*?) \ntraceback: ", re.DOTALL)


class _Kind(msgspec.Struct):
    object: msgspec.Raw = msgspec.Raw(b"null")


class Failure(NamedTuple):
    """An error response. If `status` is 0, the proxy builds the response from the message."""

    message: str
    status: int = 0
    body: bytes = b""


def find_failure(error: bytes) -> Failure:
    """Return the failure that an `error` in its JSON encoding describes."""
    if len(error) > ERROR_MAX_BYTES:
        return Failure(error_text(error))
    try:
        return read_failure(msgspec.json.decode(error))
    except (msgspec.MsgspecError, RecursionError):
        return Failure(error.decode(errors="replace"))


def read_failure(error: Any) -> Failure:
    """Return the failure that a decoded `error` of any JSON type describes."""
    value = _take_apart(error) if isinstance(error, str) else error
    if isinstance(value, dict):
        return _of_object(value)
    return Failure(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def is_error_object(output: bytes) -> bool:
    """Return True if an output is an error object, as images with an old vLLM return it."""
    try:
        return bytes(msgspec.json.decode(output, type=_Kind).object) == b'"error"'
    except (msgspec.MsgspecError, RecursionError):
        return False


def _take_apart(text: str) -> Any:
    if found := _TRACE.match(text):
        text = found.group(1)
    if text[:1] != "{":
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        pass
    if len(text) > PYTHON_ERROR_MAX_CHARACTERS:
        return text
    try:
        return msgspec.json.decode(_as_json(text))
    except (ValueError, SyntaxError, RecursionError):  # includes the errors of msgspec
        return text


def _as_json(text: str) -> bytes:
    """Convert Python notation to JSON, token by token.

    `ast.literal_eval` of the whole text is not safe: deeply nested input crashes the interpreter.
    """
    return b"".join(map(_piece_as_json, _PIECE.finditer(text)))


def _piece_as_json(piece: re.Match[str]) -> bytes:
    if piece.lastgroup == "text":
        return msgspec.json.encode(ast.literal_eval(piece[0]))
    return _NAMES.get(piece[0]) or piece[0].encode()


def _of_object(value: dict[str, Any]) -> Failure:
    if isinstance(value.get("error"), dict):
        return _of_object(value["error"])
    message = value.get("message", value.get("error_message"))
    message = message if isinstance(message, str) else str(value)
    if found := _UPSTREAM.match(message):
        status, body = int(found.group(1)), found.group(2).encode()
        if FIRST_ERROR <= status <= LAST_ERROR:
            return Failure(
                message, status, body if _is_object(body) else _body(status, found.group(2))
            )
    code = value.get("code")
    if isinstance(code, int) and FIRST_ERROR <= code <= LAST_ERROR:
        fields = {name: field for name, field in value.items() if name != "object"}
        return Failure(message, code, msgspec.json.encode({"error": fields}, enc_hook=str))
    return Failure(message)


def _body(status: int, message: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
    return msgspec.json.encode({"error": error})


def _is_object(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


EVENTS = f"{EVENT_STREAM}; charset=utf-8"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
DONE = b"data: [DONE]\n\n"
QUOTE = b'"'
# The maximum nesting of lists in a stream element. A deeper list is not a batch of events.
ELEMENT_MAX_DEPTH = 2


class _Asked(msgspec.Struct):
    stream: msgspec.Raw = msgspec.Raw(b"false")


class Answer:
    """The response of one run, converted incrementally."""

    def __init__(self, body: bytes) -> None:
        self.is_stream = False
        # The request body until `read` has parsed it.
        self.unread = body
        if len(body) <= INLINE_MAX_BYTES:
            self.read(body)
        # Events have arrived.
        self.has_begun = False
        # Set if an error arrived instead of events.
        self.failure: Failure | None = None
        # The number of elements.
        self.received = 0
        # The last returned bytes end within an event.
        self.is_mid_event = False
        # One of the events is an error.
        self.carries_error = False
        # The elements of a complete response.
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        # Keeps the bytes after the last complete event.
        self._stream = Events()
        # The final event, and what follows it: only the result shows whether an element was lost
        # or posted again.
        self._held: list[bytes] = []
        self._held_bytes = 0
        # The events arrived as objects, without the final `[DONE]`.
        self._was_parsed = False

    @property
    def backlog(self) -> int:
        """The number of buffered bytes."""
        return self._stream.backlog + self._kept_bytes + self._held_bytes

    def read(self, body: bytes) -> None:
        """Parse the request body. This must be called before any other method."""
        asked = msgspec.json.decode(body, type=_Asked) if body else _Asked()
        self.is_stream = bytes(asked.stream) == b"true"
        self.unread = b""

    def put(self, element: bytes) -> bytes:
        """Add a JSON element; return the events that can be passed on. See `is_mid_event`.

        The final event, and what follows it, waits for the result.
        """
        self.received += 1
        if not self.is_stream:
            self._kept.append(element)
            self._kept_bytes += len(element)
            return b""
        return self._events(element, ELEMENT_MAX_DEPTH)

    def finish(self, output: bytes) -> bytes:
        """Complete the response with the result of the run; return the remaining events."""
        if not self.is_stream or self.failure is not None:
            return b""
        late = (
            b""
            if self.received
            else b"".join(
                self._events(one, ELEMENT_MAX_DEPTH) for one in elements(output) or [output]
            )
        )
        blank_line = b""
        for part in self._stream.end():
            if part.data.strip() or self.is_mid_event:
                late += self._pass_on(part)
                blank_line = b"\n\n"
        late += b"".join(self._held) + blank_line
        return late + DONE if self._was_parsed else late

    def has_holes(self, output: bytes) -> bool:
        """Return True if elements of a stream were lost, by comparison with those in its result."""
        try:
            listed = elements(output) if self.is_stream and self.received else None
        except TooManyElementsError:
            return False  # unknown
        return bool(listed) and len(listed or ()) != self.received

    def whole(self, output: bytes) -> tuple[Head, bytes] | None:
        """Return a complete (non-streaming) response, or None if it is empty."""
        found = elements(output)
        found = [output] if found is None else found or self._kept
        if len(found) == 1 and found[0] != NULL:
            return _unwrapped(found[0])
        if found and all(one.startswith(QUOTE) for one in found):
            return Head(200, TEXT), "".join(
                msgspec.json.decode(one, type=str) for one in found
            ).encode()
        return (Head(200, JSON), output) if len(found) > 1 and elements(output) else None

    def _events(self, element: bytes, depth: int) -> bytes:
        if element.startswith(QUOTE):
            return self._whole_events(msgspec.json.decode(element, type=str).encode())
        listed = elements(element) if depth else None
        if listed is not None:
            return b"".join(self._events(one, depth - 1) for one in listed)
        if not self.has_begun and is_error_object(element):
            self.failure = find_failure(element)
            return b""
        if element == NULL:
            return b""
        self.has_begun = self._was_parsed = True
        return self._pass_on(Part(b"data: %b\n\n" % element, begins=True))

    def _whole_events(self, data: bytes) -> bytes:
        self.has_begun = True
        return b"".join(map(self._pass_on, self._stream.feed(data)))

    def _pass_on(self, part: Part) -> bytes:
        self.carries_error |= carries_error(part)
        size = len(part.data)
        end = end_start(part.data) if part.begins and not part.more else size
        if not self._held and end == size:
            self.is_mid_event = part.more
            return part.data
        start = 0 if self._held else end
        self._held.append(part.data[start:])
        self._held_bytes += size - start
        return part.data[:start]


def _unwrapped(element: bytes) -> tuple[Head, bytes]:
    if not element.startswith(QUOTE):
        failure = find_failure(element) if is_error_object(element) else None
        if failure is not None and failure.status:
            return Head(failure.status, JSON), failure.body
        return Head(200, JSON), element
    text = msgspec.json.decode(element, type=str).encode()
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError):
        return Head(200, TEXT), text
    return Head(200, JSON), text
