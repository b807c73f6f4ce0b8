"""Reading a request's body: counted while it comes, checked once, kept as the bytes it was."""

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple, TypeVar

import msgspec

from proxy.access.body_budget import Share
from proxy.api.errors import ApiError
from proxy.service.json_text import BODY_MAX_STEPS, has_too_much, in_thread_if_large, utf8_fault

Decoded = TypeVar("Decoded")

JSON = b"application/json"
FORM = b"multipart/form-data"
TOO_MUCH = f"The body has too much in it: {BODY_MAX_STEPS // 2:,} values, keys and escapes are the most, or twice as many blanks."
MODEL_BYTES = 2048  # of a model's name as it is written; it stands in sentences and headers, and no name is longer


class ClientGoneError(Exception):
    """The client left before its request was whole."""


_NULL, _TRUE = msgspec.Raw(b"null"), msgspec.Raw(b"true")
_OBJECT = re.compile(rb"[ \t\r\n]*\{")


class BodySummary(NamedTuple):
    """What this proxy looks at. Everything else is between the client and the engine.

    `is_streaming`: the client asks for a stream. Only a plain `true` is taken for yes; the engine judges the rest.
    """

    model: str | None = None
    is_streaming: bool = False


class _Fields(msgspec.Struct):
    """The fields, as they are written: any of them may be as long as the body.

    The `guided_*` fields were vLLM's once. It ignores them today, and answers 200 with text that obeys nothing.
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
        parts.write(
            part
        )  # into one growing block: pieces, freed between other things, would leave memory in tatters
        if is_last:
            return parts.getvalue()


def require_type(content_type: bytes, wanted: bytes) -> None:
    """Let only this media type through: `text/plain`, which a web page may send without asking, is never one."""
    if content_type.partition(b";")[0].strip().lower() != wanted:
        raise ApiError(
            "unsupported_media_type", f"Send the body with `Content-Type: {wanted.decode()}`."
        )


async def peek(body: bytes) -> BodySummary:
    """Check that a body is UTF-8 and a JSON object, and look at `model` and `stream`. `ApiError` says what is wrong."""
    return await in_thread_if_large(_peek, body)


def _peek(body: bytes) -> BodySummary:
    found = decode_object(body, _decoder, "The body must be a JSON object.", _wrong_type)
    for name in _RETIRED:
        if getattr(found, name) != _NULL:
            raise ApiError(
                "invalid_body",
                f"`{name}` is no longer obeyed: use `structured_outputs` instead.",
                name,
            )
    return BodySummary(read_text("model", found.model, MODEL_BYTES), found.stream == _TRUE)


def read_text(name: str, written: msgspec.Raw, most: int) -> str | None:
    """A field that is a string, or null; it is built only when it is short enough to be one of these."""
    try:
        if len(written) <= most:
            return _text.decode(written)
    except msgspec.MsgspecError:
        raise ApiError("invalid_body", f"`{name}` must be a string.", name) from None
    raise ApiError("invalid_body", f"`{name}` must be a string of at most {most} bytes.", name)


def decode_object(
    body: bytes,
    decoder: msgspec.json.Decoder[Decoded],
    no_object: str,
    wrong: Callable[[msgspec.ValidationError], ApiError],
) -> Decoded:
    """A body that must be UTF-8 and a JSON object, else `ApiError`; `wrong` is what a value of a wrong type is told."""
    if (fault := utf8_fault(body)) is not None:
        raise ApiError("invalid_json", f"The body is not UTF-8 (at byte {fault}).")
    if has_too_much(body, BODY_MAX_STEPS):
        raise ApiError("invalid_body", TOO_MUCH)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if not _OBJECT.match(body):
            raise ApiError("invalid_body", no_object) from error
        raise wrong(error) from error
    except (msgspec.DecodeError, RecursionError) as error:
        detail = str(error) or "it is nested too deeply"
        raise ApiError("invalid_json", f"The body is not valid JSON: {detail}.") from error


def _wrong_type(error: msgspec.ValidationError) -> ApiError:
    return ApiError("invalid_body", f"The body has a value of the wrong type: {error}.")
