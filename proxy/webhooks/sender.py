"""One try to deliver a webhook: a POST to where it may go, answered in time with 200 or not.

Looks up a receiver's name and checks what comes back. aiohttp dials exactly these addresses, so a name that answers
differently the next time (DNS rebinding) gains nothing.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from ipaddress import ip_address
from typing import TypeAlias

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.service.clock import Clock
from proxy.webhooks.signature import sign
from proxy.webhooks.url_policy import Allowed, BadWebhookError, read_url

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


ACKNOWLEDGED = 200
ANSWER_BYTES = 64 * 1024  # read of an answer at most, headers and all
HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": "vllm-serverless",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True, slots=True)
class SendTimeouts:
    """Seconds that a receiver has."""

    connect: float = 5.0  # to look its name up and to connect
    total: float = 10.0


class Sender:
    """Signs and posts. It follows no redirect, uses no proxy, keeps no cookie and believes no name twice."""

    def __init__(
        self,
        key: bytes,
        allowed: Allowed,
        clock: Clock,
        *,
        lookup: Lookup = system_lookup,
        patience: SendTimeouts | None = None,
    ) -> None:
        self._key, self._allowed, self._clock, self._lookup = key, allowed, clock, lookup
        self._patience = patience or SendTimeouts()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[ClientSession]:
        """What `send` needs, open for as long as the context lasts."""
        connector = TCPConnector(
            resolver=GuardedResolver(self._allowed, self._lookup),
            use_dns_cache=False,  # every connection is checked
            force_close=True,  # one that was kept could be closed by the receiver just when the next delivery begins
            limit=0,  # whoever calls `send` counts
        )
        async with ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            headers=HEADERS,
            timeout=ClientTimeout(total=self._patience.total, connect=self._patience.connect),
            read_bufsize=ANSWER_BYTES // 2,  # aiohttp stops reading at twice that
            auto_decompress=False,
            trust_env=False,
        ) as session:
            yield session

    async def send(
        self, session: ClientSession, webhook: str, message: str, body: bytes
    ) -> str | None:
        """Tell a receiver. Gives None when it has acknowledged, else why not, in words that may be logged.

        Its status says all; the rest of the answer is not waited for.
        """
        headers = sign(self._key, message, self._clock.now(), body)
        try:
            url = read_url(webhook, self._allowed)
            async with session.post(
                url, data=BytesIO(body), headers=headers, allow_redirects=False
            ) as answer:
                return None if answer.status == ACKNOWLEDGED else f"status {answer.status}"
        except BadWebhookError as error:
            return str(error)
        except (ClientError, OSError, ValueError) as error:
            return type(error).__name__  # its text may hold the URL
