"""Validation of a request's head, as a pure function. Malformed heads are rejected, never repaired.

uvicorn's parser accepts heads that servers and proxies in a chain interpret differently: two `Host`
fields or none, a `Host` with a path in it, heads of any size, transfer codings that the proxy does
not decode (RFC 9112, sections 3.2, 5 and 6.1). The servers in front of this proxy and the servers
behind it must see the same request, or request smuggling becomes possible.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from proxy.api.errors import ApiError

Fields: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Header fields: pairs of a name in lower case and a value."""

# Browsers and SDKs send one or two KB.
HEAD_MAX_BYTES = 32 * 1024

HEAD_MAX_FIELDS = 100
OLD_HTTP_VERSION = "1.0"
HTTP_VERSIONS = ("1.1", OLD_HTTP_VERSION)
MAX_PORT = 65_535

# The parser accepts any number of leading zeros in a `Content-Length`; Python's `int` does not.
CONTENT_LENGTH_MAX_DIGITS = 19

_HOST = re.compile(
    rb"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]{2,45}\])"
    rb"(?::(?P<port>[0-9]{1,5}))?"
)
_ABSOLUTE = re.compile(rb"https?://(?P<host>[^/?]*)(?P<path>/?.*)", re.IGNORECASE | re.DOTALL)
_LOOPBACK = re.compile(rb"localhost\.?|127(?:\.[0-9]{1,3}){3}|\[::1\]")
UPGRADE_FIELDS = (b"connection", b"upgrade", b"http2-settings")
_SINGLE_FIELDS = (
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"content-type",
    b"content-encoding",
    b"expect",
)


@dataclass(frozen=True, slots=True)
class Hosts:
    """The host names that requests may address this proxy by.

    Without a key only names of the loopback interface are accepted, to prevent DNS-rebinding
    attacks from web pages. With keys every name is accepted, unless the operator lists the allowed
    ones.
    """

    # In lower case, without ports.
    allowed: frozenset[bytes] = frozenset()
    # The proxy requires no key.
    is_open: bool = False

    def accept(self, name: bytes) -> bool:
        """Return True if requests with this host name are accepted."""
        lower = name.lower()
        if _LOOPBACK.fullmatch(lower):
            return True
        return lower in self.allowed if self.allowed or self.is_open else True


class Target(NamedTuple):
    """A request target: its path and query, and the host that an absolute-form target names."""

    path: bytes
    host: bytes | None = None


def read_target(target: bytes) -> Target | None:
    """Return the parts of a request target, or None if it is neither a path nor an absolute URL."""
    if target.startswith(b"/"):
        return Target(target)
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        return None
    path = found["path"]
    return Target(path if path.startswith(b"/") else b"/" + path, found["host"])


def check_head(target: bytes, version: str, fields: Fields, hosts: Hosts) -> ApiError | None:
    """Return the error of an invalid head, or None. The size is checked elsewhere (`head_size`).

    A head of HTTP/1.0 may have no `Host`; the gate accepts it if it has a key or needs none.
    """
    seen = dict(fields)
    if len(seen) != len(fields) and (duplicate := _duplicate(fields)):
        return _bad(f"Duplicate `{duplicate.decode()}` header. Send it once.")
    if len(fields) > HEAD_MAX_FIELDS:
        return too_large_head()
    if version not in HTTP_VERSIONS:
        return _bad("Unsupported HTTP version. Use HTTP/1.1.")
    parts = read_target(target)
    if parts is None or b"#" in target:
        return _bad("Invalid request target: it must be a path or a URL, without a fragment.")
    field = seen.get(b"host")
    if field is None and version != OLD_HTTP_VERSION:
        return missing_host()
    return _check_hosts(field, parts.host, hosts) or _check_framing(version, seen)


def head_size(target: bytes, fields: Fields) -> int:
    """Return the approximate size of a head in bytes."""
    return len(target) + sum(len(name) + len(value) + 4 for name, value in fields)


def longest_line(target: bytes, fields: Fields) -> int:
    """Return the length of the longest line of a head in bytes, without method and version."""
    return max([len(target), *(len(name) + len(value) + 2 for name, value in fields)])


def is_host(text: str) -> bool:
    """Return True if the text is a valid value of a `Host` field, without a port."""
    found = _HOST.fullmatch(text.encode("utf-8", "replace"))
    return found is not None and found["port"] is None


def too_large_head() -> ApiError:
    """Return the error for a head with too many bytes or fields."""
    limit = f"at most {HEAD_MAX_BYTES // 1024} KB and {HEAD_MAX_FIELDS} fields are allowed"
    return ApiError("head_too_large", f"The request head is too large: {limit}.")


def missing_host() -> ApiError:
    """Return the error for a request without a valid host."""
    return _bad("Missing or invalid `Host` header: send one with a host and an optional port.")


def path_of(target: bytes) -> str:
    """Return the path of a request target, without decoding it; empty for `*` and the like."""
    parts = read_target(target) or Target(b"")
    return parts.path.partition(b"?")[0].decode("latin-1")


def base_url(fields: Fields) -> str:
    """Return the scheme and the host that a request was sent to.

    The scheme is `http`, unless a TLS-terminating server in front sets `X-Forwarded-Proto`. A page
    cannot set that field: it would need a preflight request, which is refused.
    """
    seen = dict(reversed(fields))
    scheme = seen.get(b"x-forwarded-proto", b"http").partition(b",")[0].strip()
    return f"{scheme.decode('latin-1')}://{seen.get(b'host', b'').decode('latin-1')}"


def without_upgrade(method: bytes, target: bytes, version: str, fields: Fields) -> bytes:
    """Return the bytes of a head without the fields that ask for another protocol."""
    kept = [field for field in fields if field[0] not in UPGRADE_FIELDS]
    connections = [value for name, value in fields if name == b"connection"]
    if any(_has_token(value, b"close") for value in connections):
        kept.append((b"connection", b"close"))
    lines = b"".join(b"%b: %b\r\n" % field for field in kept)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), lines)


def _duplicate(fields: Fields) -> bytes | None:
    """Return the name of a field that occurs more than once although it must not, or None."""
    names = [name for name, _ in fields]
    return next((name for name in _SINGLE_FIELDS if names.count(name) > 1), None)


def _check_hosts(field: bytes | None, named: bytes | None, hosts: Hosts) -> ApiError | None:
    """Check the `Host` field and the host of the target, which takes precedence over the field (RFC
    9112, section 3.2.2). None: there is none.
    """
    name = None
    for value in (field, named):
        if value is not None and (name := _host_name(value)) is None:
            return missing_host()
    if name is not None and not hosts.accept(name):
        return ApiError(
            "host_not_allowed",
            "The host name of the request is not allowed. Allow it with --allowed-host.",
        )
    return None


def _host_name(value: bytes) -> bytes | None:
    """Return the name in a host with an optional port, or None if it is not valid."""
    found = _HOST.fullmatch(value)
    return None if found is None or int(found["port"] or 0) > MAX_PORT else found["name"]


def _check_framing(version: str, seen: dict[bytes, bytes]) -> ApiError | None:
    coding = seen.get(b"transfer-encoding")
    if coding is not None and (
        coding.lower() != b"chunked" or b"content-length" in seen or version != HTTP_VERSIONS[0]
    ):
        return _bad(
            "Invalid body framing: send either `Content-Length` or `Transfer-Encoding: chunked`."
        )
    length = seen.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) <= CONTENT_LENGTH_MAX_DIGITS):
        return _bad("Invalid `Content-Length`: it must be a number.")
    if seen.get(b"content-encoding", b"identity").lower() != b"identity":
        return ApiError(
            "unsupported_media_type",
            "Unsupported `Content-Encoding`. Send the body without an encoding.",
            # RFC 9110, section 12.5.3: it tells the client that the coding is the reason.
            more=[(b"accept-encoding", b"identity")],
        )
    if seen.get(b"expect", b"100-continue").lower() != b"100-continue":
        return _bad("Unsupported `Expect`: only 100-continue is supported.")
    if seen.get(b"upgrade", b"").lower() == b"websocket":
        if coding is not None or length not in (None, b"0"):
            return _bad("A WebSocket handshake must not have a body.")
        if version != HTTP_VERSIONS[0]:
            return _bad("A WebSocket handshake must use HTTP/1.1.")
    return None


def _bad(sentence: str) -> ApiError:
    return ApiError("bad_request", sentence)


def _has_token(value: bytes, token: bytes) -> bool:
    """Return True if a comma-separated field value has this token, which is in lower case."""
    return token in [one.strip() for one in value.lower().split(b",")]
