"""Reads two fields of a form (multipart/form-data) without parsing the rest or changing a byte."""

import re

from proxy.api.http import BodySummary

# Only the first parts are read: a transcription has about ten; a malicious body of empty parts
# would have millions.
FORM_MAX_PARTS = 64
# Longer headers of a part, and longer values of a field, are not read.
FORM_PART_HEADER_MAX_BYTES = 512
# RFC 2046: at most 70 characters.
_BOUNDARY = re.compile(rb'boundary="?([^";,]{1,70})', re.IGNORECASE)
_NAME = re.compile(rb'form-data\b[^\r\n]*;\s*name="?(model|stream)"?\s*(?:;|\r|$)', re.IGNORECASE)


def peek_form(content_type: bytes, body: bytes) -> BodySummary:
    """Return the `model` and `stream` of a form.

    A field that is not found counts as missing; validating the form is left to the engine.
    """
    found = _BOUNDARY.search(content_type)
    fields = _fields(b"--" + found.group(1).rstrip(), body) if found else {}
    model = fields.get(b"model")
    is_streaming = fields.get(b"stream", b"").lower() == b"true"
    return BodySummary(model.decode(errors="replace") if model else None, is_streaming)


def _fields(delimiter: bytes, body: bytes) -> dict[bytes, bytes]:
    """Return the first value of each field name.

    A part consists of delimiter, headers, an empty line, its content, and a line break.
    """
    fields: dict[bytes, bytes] = {}
    at = body.find(delimiter)
    for _ in range(FORM_MAX_PARTS):
        head = body.find(b"\r\n\r\n", at, at + FORM_PART_HEADER_MAX_BYTES) if at >= 0 else -1
        end = body.find(b"\r\n" + delimiter, head + 2) if head >= 0 else -1
        if end < 0:
            break
        if end - head < FORM_PART_HEADER_MAX_BYTES and (name := _NAME.search(body, at, head)):
            fields.setdefault(name.group(1), body[head + 4 : end])
        at = end + 2
    return fields
