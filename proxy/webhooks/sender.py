"""One attempt to deliver a webhook: a POST that succeeds if the receiver returns 200 in time.

The resolver checks the addresses of the receiver's name. aiohttp connects to exactly these
addresses, so a name that resolves differently the next time (DNS rebinding) bypasses nothing.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from ipaddress import IPv4Address, ip_address
from typing import TypeAlias

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.service.clock import Clock
from proxy.webhooks.signature import sign
from proxy.webhooks.url_policy import Allowed, BadWebhookError, read_url

Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host name, for a port. Raises OSError if it has none."""


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """Resolve a host name with the resolver of the operating system."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [str(address[0]) for *_, address in found]


class GuardedResolver(AbstractResolver):
    """A resolver of aiohttp that returns addresses only if all of them may be connected to."""

    def __init__(self, allowed: Allowed, lookup: Lookup) -> None:
        self._allowed = allowed
        self._lookup = lookup

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - all families are checked
    ) -> list[ResolveResult]:
        """Return all addresses of a host name.

        Raises BadWebhookError if one of them is private, so that no packet is sent, and OSError if
        there is none.
        """
        addresses = [ip_address(text) for text in await self._lookup(host, port)]
        if not addresses:
            raise OSError("the host name has no address")
        if not self._allowed.has_name(host) and not all(map(self._allowed.has_address, addresses)):
            raise BadWebhookError("its host name resolves to an address that is not public.")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Do nothing, because the resolver holds no resources."""


ACKNOWLEDGED_STATUS = 200
# The maximum that is read of a response, including its headers.
RESPONSE_MAX_BYTES = 64 * 1024
HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": "vllm-serverless",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True, slots=True)
class SendTimeouts:
    """The timeouts of one attempt, in seconds; `connect` includes resolving the host name."""

    connect: float = 5.0
    total: float = 10.0


class Sender:
    """Signs and posts webhooks, without redirects, proxies, cookies or a DNS cache."""

    def __init__(
        self,
        key: bytes,
        allowed: Allowed,
        clock: Clock,
        *,
        lookup: Lookup = system_lookup,
        timeouts: SendTimeouts | None = None,
    ) -> None:
        self._key = key
        self._allowed = allowed
        self._clock = clock
        self._lookup = lookup
        self._timeouts = timeouts or SendTimeouts()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[ClientSession]:
        """Open the HTTP session that `send` needs."""
        connector = TCPConnector(
            resolver=GuardedResolver(self._allowed, self._lookup),
            # The addresses of every connection are checked.
            use_dns_cache=False,
            # The receiver could close a kept connection exactly when the next delivery starts.
            force_close=True,
            # The callers of `send` limit the number of connections.
            limit=0,
        )
        async with ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            headers=HEADERS,
            timeout=ClientTimeout(total=self._timeouts.total, connect=self._timeouts.connect),
            # aiohttp stops reading at twice this size.
            read_bufsize=RESPONSE_MAX_BYTES // 2,
            auto_decompress=False,
            trust_env=False,
        ) as session:
            yield session

    async def send(
        self, session: ClientSession, webhook: str, message: str, body: bytes
    ) -> str | None:
        """Send `body` to a receiver; `message` is the idempotency key of the event.

        Return None if the receiver has acknowledged it, else a reason without secrets. Only the
        status of the response matters; its body is not read.
        """
        headers = sign(self._key, message, self._clock.wall(), body)
        try:
            url = read_url(webhook, self._allowed)
            async with session.post(
                url, data=BytesIO(body), headers=headers, allow_redirects=False
            ) as response:
                if response.status == ACKNOWLEDGED_STATUS:
                    return None
                return f"status {response.status}"
        except BadWebhookError as error:
            return str(error)
        except (ClientError, OSError, ValueError) as error:
            # The text of the error may contain the URL, which may be secret.
            return type(error).__name__
