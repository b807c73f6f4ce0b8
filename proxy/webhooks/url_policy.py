"""Where a webhook may go. A client chooses its URL and this proxy calls it, from inside its network: so only to what is
public, or named by the operator.

A URL is read once, by one strict pattern, and the URL that is dialled must agree with it about scheme, host and port.
What two readers could take for two things (userinfo, backslashes, control characters, other alphabets, numbers that are
addresses, dots at the end) is refused, not repaired. Names are looked up only at the delivery: see `resolver.py`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from yarl import URL

from proxy.webhooks.addresses import Address, is_public, unmapped

DEFAULT_PORTS = {"http": 80, "https": 443}
FIRST_FREE_PORT, LAST_PORT = (
    1024,
    65535,
)  # below are mail, shells and the like, which must not hear a client's bytes
LOCAL_SUFFIXES = frozenset({"arpa", "internal", "lan", "local", "localdomain", "localhost", "svc"})
AMBIGUOUS = "it can be read in more than one way."
LABEL_CHARACTERS, NAME_CHARACTERS = 63, 253

_CHARACTERS = re.compile(r"[!-\[\]-~]+")  # printable ASCII without space and backslash
_URL = re.compile(
    r"(?P<scheme>https?)://(?:(?P<name>[a-z0-9._-]+)|\[(?P<v6>[0-9a-f:.]+)\])(?::(?P<port>[1-9][0-9]{0,4}))?(?:[/?#].*)?",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class BadWebhookError(ValueError):
    """A webhook must not go there. The sentence says why, and holds nothing of the URL that could be secret."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Private receivers that the operator has named."""

    names: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def read(cls, words: Iterable[str]) -> "Allowed":
        """Host names, addresses and networks; `ValueError` says which word is none of them."""
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
        """Whether this very name may be told, wherever it leads."""
        return host.lower() in self.names

    def has_address(self, address: Address) -> bool:
        """Whether packets may go there."""
        real = unmapped(address)
        return is_public(address) or any(real in network for network in self.networks)


def check_url(text: str, allowed: Allowed) -> None:
    """`BadWebhookError` if no webhook may go there, as far as can be said without looking a name up."""
    read_url(text, allowed)


def read_url(text: str, allowed: Allowed) -> URL:
    """The URL as it is dialled; its path and query stay as they were written."""
    if not _CHARACTERS.fullmatch(text):
        raise BadWebhookError(
            "only printable ASCII may stand in it, without spaces and backslashes: encode other characters with %, and "
            "a host's with Punycode (xn--...)."
        )
    found = _URL.fullmatch(text)
    if found is None:
        raise BadWebhookError(
            "it must look like https://host/path or http://host:port/path, without user or password."
        )
    scheme, host = found["scheme"].lower(), found["name"] or found["v6"]
    port = int(found["port"] or DEFAULT_PORTS[scheme])
    if port not in DEFAULT_PORTS.values() and not FIRST_FREE_PORT <= port <= LAST_PORT:
        raise BadWebhookError(f"its port must be 80, 443 or from {FIRST_FREE_PORT} to {LAST_PORT}.")
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
                "its host looks like an address and is none: write it out, as 192.0.2.1."
            ) from None
        if not allowed.has_address(address):
            raise BadWebhookError(
                "its host is not a public address. The operator can allow it (PROXY_WEBHOOK_ALLOW)."
            )
        return
    if not _is_name(host):
        raise BadWebhookError("its host is not a name that can be looked up.")
    labels = host.lower().split(".")
    if not allowed.has_name(host) and (len(labels) == 1 or labels[-1] in LOCAL_SUFFIXES):
        raise BadWebhookError(
            "its host is not a public name. The operator can allow it (PROXY_WEBHOOK_ALLOW)."
        )


def _is_number(host: str) -> bool:
    """Whether a lenient reader could take it for an IPv4 address: octal, hexadecimal, short or all in one number."""
    return _NUMBER.fullmatch(host.lower().rstrip(".").rpartition(".")[2]) is not None


def _is_name(host: str) -> bool:
    labels = host.split(".")
    fits = len(host) <= NAME_CHARACTERS and all(
        0 < len(label) <= LABEL_CHARACTERS for label in labels
    )
    return fits and re.fullmatch(r"[A-Za-z0-9._-]+", host) is not None
