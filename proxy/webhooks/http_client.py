"""The HTTP client of webhooks.

The resolver checks the addresses of the receiver's name. aiohttp connects to exactly these
addresses, so a name that resolves differently the next time (DNS rebinding) bypasses nothing.

`Sender` imports this module when the first webhook is due: aiohttp takes 10 MB of memory and 0.1 s,
and most proxies send none.
"""

import socket
from collections.abc import Mapping
from io import BytesIO
from ipaddress import IPv4Address, ip_address

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy.webhooks.lookup import Lookup, SendTimeouts
from proxy.webhooks.url_policy import Allowed, BadWebhookError

ACKNOWLEDGED_STATUS = 200
# The maximum that is read of a response, including its headers.
RESPONSE_MAX_BYTES = 64 * 1024
HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": "vllm-serverless",
    "Accept-Encoding": "identity",
}


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


class HttpClient:
    """Posts webhooks, without redirects, proxies, cookies or a DNS cache. It is made and used in
    one event loop.
    """

    def __init__(self, allowed: Allowed, lookup: Lookup, timeouts: SendTimeouts) -> None:
        connector = TCPConnector(
            resolver=GuardedResolver(allowed, lookup),
            # The addresses of every connection are checked.
            use_dns_cache=False,
            # The receiver could close a kept connection exactly when the next delivery starts.
            force_close=True,
            # The callers of `post` limit the number of connections.
            limit=0,
        )
        self._session = ClientSession(
            connector=connector,
            cookie_jar=DummyCookieJar(),
            headers=HEADERS,
            timeout=ClientTimeout(total=timeouts.total, connect=timeouts.connect),
            # aiohttp stops reading at twice this size.
            read_bufsize=RESPONSE_MAX_BYTES // 2,
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, url: URL, headers: Mapping[str, str], body: bytes) -> str | None:
        """Post `body` to an allowed URL.

        Return None if the receiver has acknowledged it, else a reason without secrets. Only the
        status of the response matters; its body is not read.
        """
        try:
            async with self._session.post(
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

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
