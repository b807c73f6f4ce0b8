"""Reading a request's body: counted while it comes, checked once, kept as the bytes it was."""

import asyncio
import codecs
from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

import msgspec

from proxy.api.errors import ApiError
from proxy.service.budget import Share

Decoded = TypeVar("Decoded")

JSON = b"application/json"
FORM = b"multipart/form-data"
CHECK_IN_THREAD_ABOVE = 256 * 1024  # a megabyte takes about a millisecond, and the event loop has other clients
TEXT_BYTES = 64 * 1024  # that are looked at together


class ClientGoneError(Exception):
    """The client left before its request was whole."""


_NULL = msgspec.Raw(b"null")


class Peek(msgspec.Struct):
    """The fields this proxy looks at. Everything else is between the client and the engine.

    The `guided_*` fields were vLLM's once. It ignores them today, and answers 200 with text that obeys nothing.
    """

    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw(b"false")
    guided_json: msgspec.Raw = _NULL
    guided_regex: msgspec.Raw = _NULL
    guided_choice: msgspec.Raw = _NULL
    guided_grammar: msgspec.Raw = _NULL

    @property
    def is_streaming(self) -> bool:
        """Whether the client asks for a stream. Only a plain `true` is taken for yes; the engine judges the rest."""
        return bytes(self.stream) == b"true"


_RETIRED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_decoder = msgspec.json.Decoder(Peek)


async def read_body(receive: Any, headers: dict[bytes, bytes], limit: int, share: Share) -> bytes:
    """The whole body, at most `limit` bytes, else `ApiError`; `ClientGoneError` when it does not come.

    It is paid for from the share: before anything is read where its size is declared, else piece by piece.
    """
    too_large = ApiError("request_too_large", f"The body may be {limit // (1024 * 1024)} MB.")
    declared = int(headers.get(b"content-length", b"0"))
    if declared > limit:
        raise too_large
    share.grow(declared)
    parts, size = BytesIO(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large
        if size > share.held:
            share.grow(size - share.held)
        is_last = not message.get("more_body", False)
        if is_last and size == len(part):
            return part  # it came in one piece, as most do
        parts.write(part)  # into one growing block: pieces, freed between other things, would leave memory in tatters
        if is_last:
            return parts.getvalue()


def require_type(content_type: bytes, wanted: bytes) -> None:
    """Let only this media type through: `text/plain`, which a web page may send without asking, is never one."""
    if content_type.partition(b";")[0].strip().lower() != wanted:
        raise ApiError("unsupported_media_type", f"Send the body with `Content-Type: {wanted.decode()}`.")


async def peek(body: bytes) -> Peek:
    """Check that a body is UTF-8 and a JSON object, and look at `model` and `stream`. `ApiError` says what is wrong."""
    seen = await asyncio.to_thread(_peek, body) if len(body) > CHECK_IN_THREAD_ABOVE else _peek(body)
    for name in _RETIRED:
        if bytes(getattr(seen, name)) != b"null":
            raise ApiError("invalid_body", f"`{name}` is no longer obeyed: use `structured_outputs` instead.", name)
    return seen


def _peek(body: bytes) -> Peek:
    return decode_object(body, _decoder, "The body must be a JSON object.", _wrong_model)


def _wrong_model(_: msgspec.ValidationError) -> ApiError:
    return ApiError("invalid_body", "`model` must be a string.", "model")


def decode_object(
    body: bytes,
    decoder: msgspec.json.Decoder[Decoded],
    no_object: str,
    wrong: Callable[[msgspec.ValidationError], ApiError],
) -> Decoded:
    """A body that must be UTF-8 and a JSON object, else `ApiError`; `wrong` is what a value of a wrong type is told."""
    check_text(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if body.lstrip()[:1] != b"{":
            raise ApiError("invalid_body", no_object) from error
        raise wrong(error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        detail = str(error) or "it is nested too deeply"
        raise ApiError("invalid_json", f"The body is not valid JSON: {detail}.") from error


def check_text(body: bytes) -> None:
    """`ApiError` for a body that is not UTF-8.

    Piece by piece: one wide character would make four bytes of each of a whole body's.
    """
    at, view = 0, memoryview(body)
    while at < len(body):
        piece = view[at : at + TEXT_BYTES]
        try:
            _, read = codecs.utf_8_decode(piece, "strict", at + len(piece) == len(body))
        except UnicodeDecodeError as error:
            raise ApiError("invalid_json", f"The body is not UTF-8 (at byte {at + error.start}).") from error
        at += read
