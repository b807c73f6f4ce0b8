"""The policy for webhook URLs (protection against server-side request forgery).

A client chooses the URL, and the proxy calls it from inside its own network. It must therefore be
public, or allowed by the operator. A URL is parsed once, with one strict pattern; the URL object
that is used for the connection must have the same scheme, host and port. A URL that two parsers
could understand differently (userinfo, backslashes, control characters, non-ASCII letters, numbers
as addresses, trailing dots) is rejected, not repaired. Host names are resolved only at the
delivery: see `GuardedResolver`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from yarl import URL

from proxy.webhooks.addresses import Address, is_public, unmapped

DEFAULT_PORTS = {"http": 80, "https": 443}
# Ports below 1024 belong to services such as mail and SSH, which must not receive bytes of a
# client.
MIN_PORT = 1024
MAX_PORT = 65535
LOCAL_SUFFIXES = frozenset({"arpa", "internal", "lan", "local", "localdomain", "localhost", "svc"})
AMBIGUOUS = "it is ambiguous: URL parsers do not agree about its host or port."
LABEL_MAX_CHARACTERS = 63
HOST_MAX_CHARACTERS = 253

# Printable ASCII without the space and the backslash.
_CHARACTERS = re.compile(r"[!-\[\]-~]+")
_URL = re.compile(
    r"(?P<scheme>https?)://(?:(?P<name>[a-z0-9._-]+)|\[(?P<v6>[0-9a-f:.]+)\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?(?:[/?#].*)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class BadWebhookError(ValueError):
    """A webhook URL is rejected. The message has the reason, without secret parts of the URL."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """The private receivers that the operator allows."""

    names: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def read(cls, words: Iterable[str]) -> "Allowed":
        """Parse host names, addresses and networks. Raises ValueError for any other word."""
        names, networks = set(), []
        for word in words:
            try:
                networks.append(ip_network(word))
            except ValueError as error:
                if "/" in word or ":" in word or _is_number(word) or not _is_name(word):
                    raise ValueError(
                        f"{word!r} is neither a host name nor a network such as 10.0.0.0/8"
                    ) from error
                names.add(word.lower())
        return cls(frozenset(names), tuple(networks))

    def has_name(self, host: str) -> bool:
        """Return True if exactly this host name is allowed, whatever its addresses are."""
        return host.lower() in self.names

    def has_address(self, address: Address) -> bool:
        """Return True if the address is public or allowed."""
        real = unmapped(address)
        return is_public(address) or any(real in network for network in self.networks)


def check_url(text: str, allowed: Allowed) -> None:
    """Raise BadWebhookError if the URL is rejected, as far as known without resolving its host."""
    read_url(text, allowed)


def read_url(text: str, allowed: Allowed) -> URL:
    """Return the URL for the connection, with path and query unchanged. Raises BadWebhookError."""
    if not _CHARACTERS.fullmatch(text):
        raise BadWebhookError(
            "only printable ASCII characters are allowed, without spaces and backslashes."
            " Percent-encode other characters, and write the host in Punycode (xn--...)."
        )
    found = _URL.fullmatch(text)
    if found is None:
        raise BadWebhookError(
            "it must have the form https://host/path or http://host:port/path, without user name"
            " and password."
        )
    scheme = found["scheme"].lower()
    host = found["name"] or found["v6"]
    port = int(found["port"] or DEFAULT_PORTS[scheme])
    if port not in DEFAULT_PORTS.values() and not MIN_PORT <= port <= MAX_PORT:
        raise BadWebhookError(f"its port must be 80, 443 or {MIN_PORT} to {MAX_PORT}.")
    _check_host(host, allowed, is_v6=found["v6"] is not None)
    try:
        url = URL(text, encoded=True)
        read = url.scheme, url.raw_host, url.port
    except ValueError:
        raise BadWebhookError(AMBIGUOUS) from None
    if read != (scheme, host, port):
        raise BadWebhookError(AMBIGUOUS)
    return url


def _check_host(host: str, allowed: Allowed, *, is_v6: bool) -> None:
    if is_v6 or _is_number(host):
        try:
            address = IPv6Address(host) if is_v6 else IPv4Address(host)
        except ValueError:
            raise BadWebhookError(
                "its host is not a valid IP address. Write it in full, such as 192.0.2.1."
            ) from None
        if not allowed.has_address(address):
            raise BadWebhookError(
                "its host is not a public address. The operator can allow it with"
                " PROXY_WEBHOOK_ALLOW."
            )
        return
    if not _is_name(host):
        raise BadWebhookError("its host is not a valid host name.")
    labels = host.lower().split(".")
    if not allowed.has_name(host) and (len(labels) == 1 or labels[-1] in LOCAL_SUFFIXES):
        raise BadWebhookError(
            "its host is not a public name. The operator can allow it with PROXY_WEBHOOK_ALLOW."
        )


def _is_number(host: str) -> bool:
    """Return True if a lenient parser could read the host as an IPv4 address.

    Such parsers accept octal, hexadecimal and shortened forms, and a single number.
    """
    return _NUMBER.fullmatch(host.lower().rstrip(".").rpartition(".")[2]) is not None


def _is_name(host: str) -> bool:
    labels = host.split(".")
    if len(host) > HOST_MAX_CHARACTERS:
        return False
    if not all(0 < len(label) <= LABEL_MAX_CHARACTERS for label in labels):
        return False
    return re.fullmatch(r"[A-Za-z0-9._-]+", host) is not None
