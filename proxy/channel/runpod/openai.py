"""From what worker-vllm puts out to the HTTP answer that its engine gave: both generations of it.

A whole answer is the only element of a list. A stream comes as texts with pieces of the event stream, cut anywhere, or
as objects that were events; it leaves as whole events, but for those that are too large to be kept until they are
whole: they leave as their pieces come. Nothing here waits or knows a job.

What a stock worker posts: the shapes of `job-done` and `job-stream`. Values stay the bytes that they were.

The HTTP status of an OpenAI call that failed on a stock worker, found again in what its error says.

worker-vllm loses it on the way: the SDK turns its error object into the text that Python shows for it. Newer images
put the status of their engine into the message; older ones have it as `code`.
"""

import ast
import re
from typing import Any, NamedTuple

import msgspec

from proxy.jobs.lifecycle import Status
from proxy.service.json_text import (
    IN_THREAD_ABOVE,
    MOST_OUTPUT_STEPS,
    has_too_much,
    in_thread_if_large,
    utf8_fault,
)
from proxy.service.mailbox import EVENT_BYTES, EVENT_STREAM, Head

ABSENT = msgspec.Raw(b"")
NULL = b"null"
TRUE = b"true"
ERROR_BYTES = 256 * 1024  # of an error; what is longer is cut, and not taken apart
MEND_BYTES = (
    4 * 1024 * 1024
)  # of a result that Python wrote and nobody else can read; more takes too long to mend
MOST_ELEMENTS = 250_000  # of a list that is taken apart: each costs about 100 bytes beside its own
IN_PROGRESS = b'"%b"' % Status.IN_PROGRESS.encode()

_NO_NUMBER = re.compile(rb'("(?:[^"\\]++|\\.)*+")|-?Infinity|NaN', re.DOTALL)


class TooManyElementsError(ValueError):
    """A list has more elements than are taken apart."""


class Result(msgspec.Struct):
    """The body of `job-done` or `job-stream`."""

    output: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    status: msgspec.Raw = ABSENT
    stop_pod: msgspec.Raw = msgspec.field(default=ABSENT, name="stopPod")

    @property
    def is_progress(self) -> bool:
        """Whether it is not the end, but how far the job is."""
        return bytes(self.status) == IN_PROGRESS

    @property
    def refreshes(self) -> bool:
        """Whether the worker is to be made anew after this job."""
        return bytes(self.stop_pod) == TRUE

    @property
    def has_failed(self) -> bool:
        """Whether the handler says that it could not."""
        return bytes(self.error) not in {b"", NULL}

    @property
    def value(self) -> bytes:
        """The output as JSON. A handler that returns nothing, or `{}`, has none."""
        return bytes(self.output) or NULL


_decoder = msgspec.json.Decoder(Result)
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_one_decoder = msgspec.json.Decoder(tuple[msgspec.Raw])  # gives up at a second element


async def read_result(body: bytes) -> Result | None:
    """The result in a body; None when it is none."""
    return await in_thread_if_large(_read, body)


def _read(body: bytes) -> Result | None:
    if utf8_fault(body) is not None or has_too_much(body, MOST_OUTPUT_STEPS):
        return None
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        pass
    if len(body) > MEND_BYTES:
        return None
    try:  # Python's own writer, which the SDK uses, lets NaN and Infinity through, which JSON does not have
        return _decoder.decode(_NO_NUMBER.sub(lambda found: found[1] or NULL, body))
    except (msgspec.MsgspecError, RecursionError):
        return None


def elements(value: bytes) -> list[bytes] | None:
    """The elements of a JSON list, each as it was; None when it is no list. Raises `TooManyElementsError`."""
    if value[:1] != b"[":
        return None
    try:  # what most answers are, however much is in it
        return [bytes(_one_decoder.decode(value)[0])]
    except msgspec.ValidationError:
        pass
    if value.count(b",") >= MOST_ELEMENTS:
        raise TooManyElementsError
    return [bytes(element) for element in _list_decoder.decode(value)]


def error_text(error: bytes) -> str:
    """An error as a string, which is all that clients take: of another JSON value its text."""
    if len(error) > ERROR_BYTES:
        return error[:ERROR_BYTES].decode(errors="replace")
    value = msgspec.json.decode(error)
    return value if isinstance(value, str) else error.decode()


MOST_CHARACTERS = (
    32 * 1024
)  # of an error in Python's writing that is taken apart: that takes 100 ns for each
FIRST_ERROR, LAST_ERROR = 400, 599
SICK = "vLLM server process is not running"  # the worker lives on, and fails every job from now on

_UPSTREAM = re.compile(r"vLLM returned HTTP (\d{3}): (.*)", re.DOTALL)
_PIECE = re.compile(
    r"""(?P<text>'(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+")|[A-Za-z]++|.""", re.DOTALL
)
_NAMES = {"None": b"null", "True": b"true", "False": b"false", "(": b"[", ")": b"]"}
_TRACE = re.compile(r"handler: (.*?) \ntraceback: ", re.DOTALL)


class _Kind(msgspec.Struct):
    object: msgspec.Raw = msgspec.Raw(b"null")


class Failure(NamedTuple):
    """An error answer. Without a status, it is one that this proxy has to put into words."""

    message: str
    status: int = 0
    body: bytes = b""


def find_failure(error: bytes) -> Failure:
    """What an `error` says, as it is written."""
    if len(error) > ERROR_BYTES:
        return Failure(error_text(error))
    try:
        return read_failure(msgspec.json.decode(error))
    except (msgspec.MsgspecError, RecursionError):
        return Failure(error.decode(errors="replace"))


def read_failure(error: Any) -> Failure:
    """What an `error`, whatever JSON value it is, says."""
    value = _take_apart(error) if isinstance(error, str) else error
    if isinstance(value, dict):
        return _of_object(value)
    return Failure(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def is_error_object(output: bytes) -> bool:
    """Whether an output is an error all the same, as images with an old vLLM give it."""
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
    if len(text) > MOST_CHARACTERS:
        return text
    try:
        return msgspec.json.decode(_as_json(text))
    except (ValueError, SyntaxError, RecursionError):  # of msgspec's, too
        return text


def _as_json(text: str) -> bytes:
    """The same in JSON. Piece by piece: Python's own reader, given something nested deeply enough, breaks for good."""
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
    told = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
    return msgspec.json.encode({"error": told})


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
DEPTH = 2  # of lists in a piece of a stream; what is deeper is no batch of events
BLANK_LINES = (b"\n\n", b"\n\r\n")  # what ends an event
EDGE_BYTES = (
    3  # a blank line may be cut into two pieces: the end of an event is kept until the next one
)
ERRORS = (
    b'data: {"error"',
    b"event: error",
    b"event: response.failed",
)  # how an error event begins


class _Asked(msgspec.Struct):
    stream: msgspec.Raw = msgspec.Raw(b"false")


class Answer:
    """The answer of one run, as it comes."""

    def __init__(self, body: bytes) -> None:
        self.is_stream = False
        self.unread = body  # what the client asked, until it has been looked at
        if len(body) <= IN_THREAD_ABOVE:
            self.read(body)
        self.has_begun = False  # events have come
        self.failure: Failure | None = None  # what came was an error
        self.received = 0  # elements
        self.is_mid_event = False  # the events that were given last end in the middle of one
        self.carries_error = False  # one of the events is an error
        self._kept: list[bytes] = []  # elements of a whole answer
        self._kept_bytes = 0
        self._rest = b""  # behind the last whole event
        self._was_parsed = False  # the events came as objects, without their end

    @property
    def backlog(self) -> int:
        """Bytes that are kept here."""
        return len(self._rest) + self._kept_bytes

    def read(self, body: bytes) -> None:
        """Look at what the client asked: before anything else."""
        self.is_stream = bytes(msgspec.json.decode(body, type=_Asked).stream) == b"true"
        self.unread = b""

    def put(self, element: bytes) -> bytes:
        """An element, as JSON. Gives the events that can be passed on; see `is_mid_event`."""
        self.received += 1
        if not self.is_stream:
            self._kept.append(element)
            self._kept_bytes += len(element)
            return b""
        return self._events(element, DEPTH)

    def finish(self, output: bytes) -> bytes:
        """The run is complete, with this result. Gives what is left of the events."""
        if not self.is_stream or self.failure is not None:
            return b""
        late = (
            b""
            if self.received
            else b"".join(self._events(one, DEPTH) for one in elements(output) or [output])
        )
        rest, self._rest = self._rest, b""
        if rest.strip() or self.is_mid_event:
            self._look_for_error(rest)
            late += rest + b"\n\n"
            self.is_mid_event = False
        return late + DONE if self._was_parsed else late

    def has_holes(self, output: bytes) -> bool:
        """Whether pieces of a stream were lost: its result, where it has one, lists them all."""
        try:
            listed = elements(output) if self.is_stream and self.received else None
        except TooManyElementsError:
            return False  # it cannot be said
        return bool(listed) and len(listed or ()) != self.received

    def whole(self, output: bytes) -> tuple[Head, bytes] | None:
        """An answer that is no stream; None when there is nothing in it."""
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
        event = b"data: %b\n\n" % element
        self._look_for_error(event)
        return event

    def _whole_events(self, data: bytes) -> bytes:
        self.has_begun = True
        begin = max(0, len(self._rest) - EDGE_BYTES)  # what is before that was searched already
        data = self._rest + data
        border, end = max((data.rfind(mark, begin), len(mark)) for mark in BLANK_LINES)
        end = border + end if border >= 0 else 0
        is_mid_event = self.is_mid_event and not end
        if is_mid_event or len(data) - end > EVENT_BYTES:
            end, is_mid_event = max(end, len(data) - EDGE_BYTES), True
        passed, self._rest = data[:end], data[end:]
        self._look_for_error(passed)
        self.is_mid_event = is_mid_event
        return passed

    def _look_for_error(self, events: bytes) -> None:
        """Look at how each event begins: whatever its size, that is enough."""
        starts = not self.is_mid_event
        self.carries_error |= any(
            (starts and events.startswith(error))
            or any(mark + error in events for mark in BLANK_LINES)
            for error in ERRORS
        )


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
