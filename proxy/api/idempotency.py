"""The headers that mark a request as a repetition, and the digest that compares two bodies."""

import re
from hashlib import sha256
from typing import NamedTuple

from proxy.api.errors import ApiError
from proxy.api.http import read_whole

KEY_HEADER = b"idempotency-key"
# OpenAI's SDKs send the number of the attempt with every request: 0 for the first one.
RETRY_COUNT_HEADER = b"x-stainless-retry-count"
REPETITION_HEADERS = frozenset((KEY_HEADER, RETRY_COUNT_HEADER))
KEY_MAX_CHARACTERS = 255
NAME = "Idempotency-Key"

_KEY = re.compile(rb"[ -~]{1,%d}" % KEY_MAX_CHARACTERS)
# RFC 2046: at most 70 characters. Each attempt of an SDK has another one.
_BOUNDARY = re.compile(rb'boundary="?([^";,]{1,70})', re.IGNORECASE)


def read_key(headers: dict[bytes, bytes]) -> str | None:
    """Return the `Idempotency-Key` of a request; None if it is missing or empty.

    Raises `ApiError`.
    """
    key = headers.get(KEY_HEADER, b"")
    if not key:
        return None
    if not _KEY.fullmatch(key):
        raise ApiError(
            "bad_request",
            f"`{NAME}` must have 1 to {KEY_MAX_CHARACTERS} printable ASCII characters.",
            NAME,
        )
    return key.decode("ascii")


class Repetition(NamedTuple):
    """The headers of one request: its `Idempotency-Key`, and the number of retries that its SDK has
    counted.
    """

    key: str | None
    retries: int


def read_repetition(headers: dict[bytes, bytes]) -> Repetition | None:
    """Return both values of a request, or None if it can be neither a retry nor repeated.

    Raises `ApiError`.
    """
    key = read_key(headers)
    retries = read_whole(headers.get(RETRY_COUNT_HEADER, b"").decode("latin-1"))
    return None if key is None and retries is None else Repetition(key, retries or 0)


def body_digest(content_type: str, body: bytes) -> bytes:
    """Return the SHA-256 of a body; for a form, of the body without its random boundary."""
    found = _BOUNDARY.search(content_type.encode("latin-1"))
    if found is not None:
        body = body.replace(b"--" + found.group(1).rstrip(), b"--")
    return sha256(body).digest()


def key_reused() -> ApiError:
    """Return the error for a key that came with another body before."""
    return ApiError(
        "idempotency_key_reused",
        f"This `{NAME}` was used with another request body. Send a new key with a new request.",
        NAME,
    )


def key_in_use() -> ApiError:
    """Return the error for a key whose earlier request still has its client."""
    return ApiError(
        "idempotency_key_in_use",
        f"A request with this `{NAME}` is being answered. Retry when it has ended, or send"
        " another key.",
        NAME,
    )
