"""The table of the header fields that cross between client and engine. No other field is forwarded.

`Content-Type` crosses in both directions, as a value of its own in the frames `Job` and `Head`.
"""

import re
from collections.abc import Iterable
from typing import TypeAlias

Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Header fields: pairs of a name in lower case and a value."""

REQUEST_ID = b"x-request-id"
RETRY_AFTER = b"retry-after"

# The patterns bound what one call carries: together at most 2.3 KB.
TO_ENGINE = {
    REQUEST_ID: re.compile(rb"[A-Za-z0-9._-]{1,128}"),
    b"traceparent": re.compile(rb"[0-9a-f-]{1,128}"),
    b"tracestate": re.compile(rb"[\t -~]{1,1024}"),
    b"user-agent": re.compile(rb"[\t -~]{1,1024}"),
}
"""The fields of a request that its engine receives, with the pattern of a valid value.

A field that does not match is not forwarded. The engine receives each of them at most once.
"""

TO_CLIENT = frozenset(
    (
        RETRY_AFTER,
        b"retry-after-ms",
        b"x-should-retry",
        b"www-authenticate",
        b"content-disposition",
    )
)
"""The fields of an engine's response that the client receives, besides those for rate limits."""

RATE_LIMITS = (b"x-ratelimit-", b"ratelimit", b"anthropic-ratelimit-")
"""The beginnings of the names of an upstream's fields for rate limits; the client receives them."""

# Header fields of one response. The rate limits of Anthropic's API have twelve.
CLIENT_FIELDS_MAX = 16
CLIENT_FIELDS_MAX_BYTES = 4 * 1024

_TO_CLIENT_VALUE = re.compile(rb"[\t -~\x80-\xff]*")


def for_client(headers: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return the header fields of an engine's response that its client receives.

    Names are in lower case. Invalid values, and fields beyond the limits, are left out.
    """
    found: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in headers:
        if not (name in TO_CLIENT or name.startswith(RATE_LIMITS)) or not _is_token(name):
            continue
        size += len(name) + len(value)
        if len(found) == CLIENT_FIELDS_MAX or size > CLIENT_FIELDS_MAX_BYTES:
            break
        if _TO_CLIENT_VALUE.fullmatch(value):
            found.append((name, value))
    return tuple(found)


def _is_token(name: bytes) -> bool:
    """Return True if a name consists of lower-case letters, digits and hyphens."""
    return name.replace(b"-", b"").isalnum() and name.islower()
