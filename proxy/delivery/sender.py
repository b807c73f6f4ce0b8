"""One try to deliver a webhook: a POST to where it may go, answered in time with 200 or not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from proxy.delivery.guard import Allowed, BadWebhookError, read_url
from proxy.delivery.resolver import GuardedResolver, Lookup, system_lookup
from proxy.delivery.signature import sign
from proxy.service.clock import Clock

ACKNOWLEDGED = 200
ANSWER_BYTES = 64 * 1024  # read of an answer at most, headers and all
HEADERS = {"Content-Type": "application/json", "User-Agent": "vllm-serverless", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Patience:
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
        patience: Patience | None = None,
    ) -> None:
        self._key, self._allowed, self._clock, self._lookup = key, allowed, clock, lookup
        self._patience = patience or Patience()

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

    async def send(self, session: ClientSession, webhook: str, message: str, body: bytes) -> str | None:
        """Tell a receiver. Gives None when it has acknowledged, else why not, in words that may be logged.

        Its status says all; the rest of the answer is not waited for.
        """
        headers = sign(self._key, message, self._clock.now(), body)
        try:
            url = read_url(webhook, self._allowed)
            async with session.post(url, data=BytesIO(body), headers=headers, allow_redirects=False) as answer:
                return None if answer.status == ACKNOWLEDGED else f"status {answer.status}"
        except BadWebhookError as error:
            return str(error)
        except (ClientError, OSError, ValueError) as error:
            return type(error).__name__  # its text may hold the URL
