"""The test for addresses on the public internet.

Python's `is_global` is not sufficient, and its result depends on the release: some releases treat
multicast, 6to4 or mapped IPv4 addresses as global. Networks that must never be reached are
therefore listed here, and an IPv6 address must be in the range that is allocated.
"""

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

_ALLOCATED = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
_V4_BITS = 0xFFFF_FFFF
_FORBIDDEN = tuple(
    ip_network(text)
    for text in (
        # IETF protocol assignments; one cloud has its metadata service here.
        "192.0.0.0/24",
        # 6to4 relays.
        "192.88.99.0/24",
        # The services of the host, as seen from every machine of one cloud.
        "168.63.129.16/32",
        # Multicast, and reserved addresses.
        "224.0.0.0/4",
        "240.0.0.0/4",
        # IETF protocol assignments, such as Teredo, which embeds an IPv4 address.
        "2001::/23",
        # Documentation.
        "2001:db8::/32",
        # 6to4, which embeds an IPv4 address.
        "2002::/16",
        # Documentation.
        "3fff::/20",
    )
)


def unmapped(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 address (mapped or NAT64), else `address` itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & _V4_BITS)
    return address


def is_public(address: Address) -> bool:
    """Return True if the address is reachable from the whole internet."""
    real = unmapped(address)
    if isinstance(real, IPv6Address) and real not in _ALLOCATED:
        return False
    return real.is_global and not any(real in network for network in _FORBIDDEN)
