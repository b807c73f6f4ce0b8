"""Looking into a form (multipart/form-data): two of its fields, found without taking it apart or changing a byte."""

import re

from proxy.api.body import BodySummary

MOST_PARTS = 64  # that are looked at: a transcription has about ten, and a body of empty ones would have millions
HEAD_BYTES = 512  # of a part's own headers, and of a field's value
_BOUNDARY = re.compile(
    rb'boundary="?([^";,]{1,70})', re.IGNORECASE
)  # RFC 2046: at most 70 characters
_NAME = re.compile(rb'form-data\b[^\r\n]*;\s*name="?(model|stream)"?\s*(?:;|\r|$)', re.IGNORECASE)


def peek_form(content_type: bytes, body: bytes) -> BodySummary:
    """The `model` and `stream` of a form. What is not found counts as not given: the engine judges the form."""
    found = _BOUNDARY.search(content_type)
    fields = _fields(b"--" + found.group(1).rstrip(), body) if found else {}
    model = fields.get(b"model")
    is_streaming = fields.get(b"stream", b"").lower() == b"true"
    return BodySummary(None if model is None else model.decode(errors="replace"), is_streaming)


def _fields(delimiter: bytes, body: bytes) -> dict[bytes, bytes]:
    """The first of each name. A part is: delimiter, headers, an empty line, its bytes, and a line break."""
    fields: dict[bytes, bytes] = {}
    at = body.find(delimiter)
    for _ in range(MOST_PARTS):
        head = body.find(b"\r\n\r\n", at, at + HEAD_BYTES) if at >= 0 else -1
        end = body.find(b"\r\n" + delimiter, head + 2) if head >= 0 else -1
        if end < 0:
            break
        if end - head < HEAD_BYTES and (name := _NAME.search(body, at, head)):
            fields.setdefault(name.group(1), body[head + 4 : end])
        at = end + 2
    return fields
