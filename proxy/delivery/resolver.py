"""Looks up a receiver's name and checks what comes back. aiohttp dials exactly these addresses, so a name that answers
differently the next time (DNS rebinding) gains nothing.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.delivery.guard import Allowed, BadWebhookError

Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host's name; `OSError` when it has none."""


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """As this machine looks names up."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [str(address[0]) for *_, address in found]


class GuardedResolver(AbstractResolver):
    """Gives addresses only if packets may go to every one of them."""

    def __init__(self, allowed: Allowed, lookup: Lookup) -> None:
        self._allowed, self._lookup = allowed, lookup

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - whichever it is, all are checked
    ) -> list[ResolveResult]:
        """The addresses of a name; `BadWebhookError` if one of them is private, and so no packet leaves."""
        addresses = [ip_address(text) for text in await self._lookup(host, port)]
        if not addresses:
            raise OSError("the name has no address")
        if not self._allowed.has_name(host) and not all(map(self._allowed.has_address, addresses)):
            raise BadWebhookError("its host's name leads to an address that is not public.")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,  # noqa: PLR2004 - of IP
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is kept open."""
