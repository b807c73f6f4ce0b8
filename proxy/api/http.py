"""Reading the bodies and header values of requests, and sending bodies: shared by both APIs.

The size of a request body is counted while the body arrives. JSON is validated once; its bytes are
kept unchanged. Numbers in queries and headers are plain decimal digits: Python's `int` and `float`
accept more than any client intends (spaces, signs, underscores, digits of other scripts, `nan` and
`inf`), and raise an exception for very long numbers.

A large response, such as the output of a job (up to 64 MB), is charged to a byte budget like a
request body. It is sent in parts, as fast as its client reads them; the connection of a client that
stops reading is closed.

The edge adds values to the ASGI scope of a request: `Routing`, and the function of `abort_of`.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple, TypeVar

import msgspec

from proxy.access.keys import Principal
from proxy.access.limits import Share
from proxy.api.errors import ApiError
from proxy.api.openai.routes import OpenAiRoute
from proxy.service.json_text import BODY_MAX_STEPS, has_too_much, in_thread_if_large, utf8_fault
from proxy.service.mailbox import STALL_SECONDS
from proxy.wire.sse import BYTE_ORDER_MARK

Decoded = TypeVar("Decoded")

JSON_TYPE = b"application/json"
FORM_TYPE = b"multipart/form-data"
TOO_COMPLEX = (
    f"JSON body too complex: at most {BODY_MAX_STEPS // 2:,} values, keys and escapes"
    f" (or {BODY_MAX_STEPS:,} whitespace characters) are accepted. Send a smaller body."
)
# The name of a model as it is written in JSON, with quotes and escapes. Error messages and headers
# repeat the name; no real name is longer.
MODEL_NAME_MAX_BYTES = 2048
# Larger than every bound that is checked; longer numbers are replaced by it.
MAX_INTEGER = 10**18
# A response up to this size fits into the socket's buffer: it is sent in one part and not charged.
ANSWER_PART_BYTES = 64 * 1024


class ClientGoneError(Exception):
    """The client disconnected before its request was complete."""


_NULL = msgspec.Raw(b"null")
_TRUE = msgspec.Raw(b"true")
_OBJECT = re.compile(rb"[ \t\r\n]*\{")
_SECONDS = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,3})?")


class BodySummary(NamedTuple):
    """The fields of a body that the proxy reads. All others concern only the client and the engine.

    `model` is None if it is missing, null or empty: the engine then uses the model that it serves.
    `is_streaming` is True only for a literal `true`; the engine validates every other value.
    """

    model: str | None = None
    is_streaming: bool = False


class _Fields(msgspec.Struct):
    """The fields as raw JSON, because each of them may be as long as the body.

    The `guided_*` fields belonged to earlier versions of vLLM. Current versions ignore them and
    answer 200 with text that does not follow the constraint.
    """

    model: msgspec.Raw = _NULL
    stream: msgspec.Raw = _NULL
    guided_json: msgspec.Raw = _NULL
    guided_regex: msgspec.Raw = _NULL
    guided_choice: msgspec.Raw = _NULL
    guided_grammar: msgspec.Raw = _NULL


_RETIRED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_decoder = msgspec.json.Decoder(_Fields)
_text: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)


async def read_body(receive: Any, headers: dict[bytes, bytes], limit: int, share: Share) -> bytes:
    """Return the complete body of an ASGI request.

    The size is charged to `share`: before anything is read if `Content-Length` declares it,
    otherwise piece by piece.

    Raises `ApiError` if the body is larger than `limit` bytes, `BudgetError` if the share cannot
    grow, and `ClientGoneError` if the client disconnects.
    """
    declared = int(headers.get(b"content-length", b"0"))
    if declared > limit:
        raise _too_large(limit)
    share.grow(declared)
    parts = BytesIO()
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if size > share.held:
            share.grow(size - share.held)
        is_last = not message.get("more_body", False)
        # Most bodies arrive in one piece, which needs no copy.
        if is_last and size == len(part):
            return part
        # One growing block: many separate pieces, freed at different times, fragment the memory.
        parts.write(part)
        if is_last:
            return parts.getvalue()


async def read_json(receive: Any, headers: dict[bytes, bytes], limit: int, share: Share) -> bytes:
    """Return the complete body of a request with JSON, like `read_body`.

    A byte order mark is left out (RFC 8259, section 8.1), because not every engine accepts one.
    """
    body = await read_body(receive, headers, limit, share)
    return body.removeprefix(BYTE_ORDER_MARK)


def _too_large(limit: int) -> ApiError:
    megabytes = limit // (1024 * 1024)
    return ApiError("request_too_large", f"The request body is too large: at most {megabytes} MB.")


def render_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return header fields as they are sent over HTTP/1.1."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def require_type(content_type: bytes, wanted: bytes) -> None:
    """Raise `ApiError` unless the media type is `wanted`, which is never `text/plain`.

    Web pages may send `text/plain` to any origin without a preflight request.
    """
    if content_type.partition(b";")[0].strip().lower() != wanted:
        raise ApiError(
            "unsupported_media_type",
            f"Unsupported `Content-Type`: send the body as `{wanted.decode()}`.",
        )


async def peek(body: bytes) -> BodySummary:
    """Validate that a body is UTF-8 and a JSON object, and return its `model` and `stream`.

    Raises `ApiError`.
    """
    return await in_thread_if_large(peek_small, body)


def peek_small(body: bytes) -> BodySummary:
    """Do the work of `peek` at once."""
    found = decode_object(body, _decoder, "The body must be a JSON object.")
    for name in _RETIRED:
        if getattr(found, name) != _NULL:
            raise ApiError(
                "invalid_body",
                f"`{name}` is no longer supported: use `structured_outputs` instead.",
                name,
            )
    model = read_text("model", found.model, MODEL_NAME_MAX_BYTES)
    return BodySummary(model or None, found.stream == _TRUE)


def read_text(name: str, written: msgspec.Raw, max_bytes: int) -> str | None:
    """Return a field that is a string or null, and is written in at most `max_bytes`.

    A longer value is rejected before it is decoded. Raises `ApiError`.
    """
    try:
        if len(written) <= max_bytes:
            return _text.decode(written)
    except msgspec.MsgspecError:
        raise ApiError("invalid_body", f"`{name}` must be a string.", name) from None
    raise ApiError("invalid_body", f"`{name}` must be a string of at most {max_bytes} bytes.", name)


def decode_object(
    body: bytes, decoder: msgspec.json.Decoder[Decoded], not_an_object: str
) -> Decoded:
    """Decode a body that must be UTF-8 and a JSON object.

    Raises `ApiError`, with the message `not_an_object` if the body is another JSON value.
    """
    if (fault := utf8_fault(body)) is not None:
        raise ApiError("invalid_json", f"The body is not UTF-8 (at byte {fault}).")
    if has_too_much(body, BODY_MAX_STEPS):
        raise ApiError("invalid_body", TOO_COMPLEX)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if not _OBJECT.match(body):
            raise ApiError("invalid_body", not_an_object) from error
        raise ApiError(
            "invalid_body", f"The body has a value of the wrong type: {error}."
        ) from error
    except msgspec.DecodeError as error:
        raise ApiError("invalid_json", f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise ApiError("invalid_json", "The body is nested too deeply.") from error


def read_whole(text: str) -> int | None:
    """Return a non-negative integer, limited to `MAX_INTEGER`; None if the text is not one."""
    if not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0")
    if len(digits) >= len(str(MAX_INTEGER)):
        return MAX_INTEGER
    return int(digits or "0")


def read_floor(text: str) -> int | None:
    """Return the integer part of a decimal number, limited to `MAX_INTEGER`.

    Returns None if the text is not a decimal number.
    """
    whole, _, fraction = text.partition(".")
    if read_whole(fraction or "0") is None:
        return None
    return read_whole(whole)


def read_seconds(value: bytes, maximum: float) -> float | None:
    """Return the seconds in a header, in the notation of Python's or JavaScript's floats.

    Returns None if the value is not a number, or not above 0 and at most `maximum`.
    """
    if not _SECONDS.fullmatch(value):
        return None
    seconds = float(value)
    return seconds if 0 < seconds <= maximum else None


def paid(body: bytes, share: Share) -> Share:
    """Charge a response to its share; the caller gives it back once the response is sent.

    Raises `BudgetError` if the budget, or its owner's part of it, is exhausted.
    """
    if len(body) > ANSWER_PART_BYTES:
        share.grow(len(body))
    return share


async def send_body(send: Any, body: bytes, abort: Callable[[], None]) -> None:
    """Send the body of an ASGI response whose start was sent.

    Calls `abort` if the client reads nothing for `STALL_SECONDS`.
    """
    if len(body) <= ANSWER_PART_BYTES:
        await send({"type": "http.response.body", "body": body})
        return
    view = memoryview(body)
    try:
        for start in range(0, len(view), ANSWER_PART_BYTES):
            end = start + ANSWER_PART_BYTES
            message = {
                "type": "http.response.body",
                "body": bytes(view[start:end]),
                "more_body": end < len(view),
            }
            async with asyncio.timeout(STALL_SECONDS):
                await send(message)
    except TimeoutError:
        abort()


# The ASGI extension that closes the connection of a request.
ABORT_EXTENSION = "vllm_serverless.abort"

_ROUTING = "vllm_serverless.routing"


class PathParameters(NamedTuple):
    """The values of the parameters in a path; None for a parameter that its route does not have."""

    endpoint: str | None = None
    job: str | None = None
    model: str | None = None
    # The rest of a path of the Runpod worker API.
    call: str | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """The results of routing and authentication.

    `openai` is None for a path of another API and for an unknown path. `principal` is None for a
    public route and for a request that is refused. `operation`: that of the queue API, or
    empty.
    """

    parameters: PathParameters
    openai: OpenAiRoute | None = None
    principal: Principal | None = None
    operation: str = ""

    @property
    def caller(self) -> Principal:
        """The principal of a route that requires a key. Raises LookupError on other routes."""
        if self.principal is None:
            raise LookupError("The caller of this request was not authenticated.")
        return self.principal


def set_routing(scope: Any, routing: Routing) -> None:
    """Add the gate's results to a request."""
    scope["state"][_ROUTING] = routing


def routing_of(scope: Any) -> Routing:
    """Return the gate's results; they are empty for a request that has not passed the gate."""
    found: Routing | None = scope["state"].get(_ROUTING)
    return found or Routing(PathParameters())


def abort_of(scope: Any) -> Callable[[], None]:
    """Return the function that closes the connection of a request.

    On a server without the ASGI extension it does nothing.
    """
    found: Callable[[], None] = scope.get("extensions", {}).get(ABORT_EXTENSION, _nothing)
    return found


def _nothing() -> None:
    pass
