"""One try to deliver a webhook: a POST that succeeds if the receiver returns 200 in time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from proxy.service.clock import Clock
from proxy.webhooks.lookup import Lookup, SendTimeouts, system_lookup
from proxy.webhooks.signature import sign
from proxy.webhooks.url_policy import Allowed, BadWebhookError, read_url

if TYPE_CHECKING:
    from proxy.webhooks.http_client import HttpClient


class Sender:
    """Signs and posts webhooks."""

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
        # Made for the first webhook; the lock is held meanwhile.
        self._client: HttpClient | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Close the connections when the context ends."""
        try:
            yield
        finally:
            client = self._client
            self._client = None
            if client is not None:
                await client.close()

    async def send(self, webhook: str, message: str, body: bytes) -> str | None:
        """Send `body` to a receiver; `message` is the idempotency key of the event.

        Return None if the receiver has acknowledged it, else a reason without secrets.
        """
        headers = sign(self._key, message, self._clock.wall(), body)
        try:
            url = read_url(webhook, self._allowed)
        except BadWebhookError as error:
            return str(error)
        client = await self._open_client()
        return await client.post(url, headers, body)

    async def _open_client(self) -> "HttpClient":
        async with self._lock:
            if self._client is None:
                client_type = await asyncio.to_thread(_client_type)
                self._client = client_type(self._allowed, self._lookup, self._timeouts)
            return self._client


def _client_type() -> "type[HttpClient]":
    from proxy.webhooks.http_client import HttpClient  # noqa: PLC0415 - see that module

    return HttpClient
