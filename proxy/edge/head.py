"""The head of a request: what is let through, as a pure function. Nothing is repaired here, only refused.

uvicorn's parser lets through what servers and proxies in a row read differently: two `Host` fields or none, a `Host`
with a path in it, heads of any size, transfer codings that nobody here undoes (RFC 9112, sections 3.2, 5 and 6.1).
Whoever stands in front of this proxy and whoever stands behind it must see the same request.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from proxy.api.errors import ApiError

Fields: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Names, in lower case, and values."""

HEAD_BYTES = 32 * 1024  # browsers and SDKs send one or two KB
MOST_FIELDS = 100
VERSIONS = ("1.1", "1.0")
LAST_PORT = 65_535
LENGTH_DIGITS = 19  # of a `Content-Length`: the parser takes any number of zeros before it, and Python no such number

_HOST = re.compile(
    rb"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
_LOOPBACK = re.compile(rb"localhost\.?|127(?:\.[0-9]{1,3}){3}|\[::1\]")
_ONCE = (
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"content-type",
    b"content-encoding",
    b"expect",
)


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names by which this proxy may be called.

    Where nobody needs a key only those of this machine: else a web page could have its own name lead here (DNS
    rebinding) and ask whatever it likes. With keys every name will do, unless the operator names some.
    """

    allowed: frozenset[bytes] = frozenset()  # in lower case, without ports
    is_open: bool = False  # nobody needs a key

    def have(self, name: bytes) -> bool:
        """Whether a request to this name is meant for this proxy."""
        lower = name.lower()
        if _LOOPBACK.fullmatch(lower):
            return True
        return lower in self.allowed if self.allowed or self.is_open else True


def check_head(target: bytes, version: str, fields: Fields, hosts: Hosts) -> ApiError | None:
    """Why a request cannot be let through, or None; its size is looked at elsewhere (`head_size`)."""
    seen = dict(fields)
    if len(seen) != len(fields) and (twice := _twice(fields)):
        return _bad(f"`{twice.decode()}` may stand there once.")
    if len(fields) > MOST_FIELDS:
        return too_large_head()
    if version not in VERSIONS:
        return _bad("Speak HTTP/1.1.")
    if not target.startswith(b"/") or b"#" in target:
        return _bad("The request target must be a path.")
    return _check_host(seen.get(b"host"), hosts) or _check_framing(version, seen)


def head_size(target: bytes, fields: Fields) -> int:
    """How many bytes a head has, about."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in fields)


def longest_line(target: bytes, fields: Fields) -> int:
    """Return the length of the longest line of a head, without method and version."""
    return max([len(target), *(len(name) + len(value) + 2 for name, value in fields)])


def is_host(text: str) -> bool:
    """Whether this is a name or an address as a `Host` field has it, without a port."""
    found = _HOST.fullmatch(text.encode("utf-8", "replace"))
    return found is not None and found["port"] is None


def too_large_head() -> ApiError:
    """The answer to a head that is too large."""
    return ApiError(
        "head_too_large", f"The head may have {HEAD_BYTES // 1024} KB and {MOST_FIELDS} fields."
    )


def path_of(target: bytes) -> str:
    """The path in a request target, as it is written there."""
    return target.partition(b"?")[0].decode("latin-1")


def _twice(fields: Fields) -> bytes | None:
    """A field of those that may stand there once, and does not."""
    names = [name for name, _ in fields]
    return next((name for name in _ONCE if names.count(name) > 1), None)


def _check_host(value: bytes | None, hosts: Hosts) -> ApiError | None:
    found = None if value is None else _HOST.fullmatch(value)
    if found is None or int(found["port"] or 0) > LAST_PORT:
        return _bad("Send one `Host` field, with a name or an address, and at most a port.")
    if not hosts.have(found["name"]):
        return ApiError(
            "host_not_allowed", "This proxy does not go by that name: see --allowed-host."
        )
    return None


def _check_framing(version: str, seen: dict[bytes, bytes]) -> ApiError | None:
    coding = seen.get(b"transfer-encoding")
    if coding is not None and (
        coding.lower() != b"chunked" or b"content-length" in seen or version != VERSIONS[0]
    ):
        return _bad("A body has either a `Content-Length` or `Transfer-Encoding: chunked`.")
    length = seen.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) <= LENGTH_DIGITS):
        return _bad("`Content-Length` must be a number.")
    if seen.get(b"content-encoding", b"identity").lower() != b"identity":
        return ApiError(
            "unsupported_media_type", "Send the body as it is, without a `Content-Encoding`."
        )
    if seen.get(b"expect", b"100-continue").lower() != b"100-continue":
        return _bad("`Expect` can only be 100-continue.")
    if seen.get(b"upgrade", b"").lower() == b"websocket":
        if coding is not None or length not in (None, b"0"):
            return _bad("A request for a WebSocket has no body.")
        if version != VERSIONS[0]:
            return _bad("Ask for a WebSocket in HTTP/1.1.")
    return None


def _bad(sentence: str) -> ApiError:
    return ApiError("bad_request", sentence)
