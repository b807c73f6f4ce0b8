"""Which addresses are on the public internet.

Python's `is_global` knows most of it, and not the same in every release: some call multicast, 6to4 or what is mapped
into IPv6 global. So what must never be reached is also written down here, and of IPv6 only what is given out counts.
"""

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

_GIVEN_OUT = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
_V4_BITS = 0xFFFF_FFFF
_NEVER = tuple(
    ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocols, and the metadata of one cloud
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # the host's own services, as every machine of one cloud sees them
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",
        "2001::/23",  # protocols: Teredo, which hides another address, and others
        "2001:db8::/32",  # examples
        "2002::/16",  # 6to4, which hides another address
        "3fff::/20",  # examples
    )
)


def unmapped(address: Address) -> Address:
    """Where packets for this address go in the end: an IPv4 address can be written as an IPv6 one."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & _V4_BITS)
    return address


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach it just as well."""
    real = unmapped(address)
    if isinstance(real, IPv6Address) and real not in _GIVEN_OUT:
        return False
    return real.is_global and not any(real in network for network in _NEVER)
