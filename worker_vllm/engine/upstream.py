"""Any OpenAI-compatible server: an ASGI app that forwards requests over HTTP.

Response bodies are streamed packet by packet. If a response is incomplete, the app ends without the
last part of its body, and the handler reports the run as lost.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
import structlog
from prometheus_client.parser import text_string_to_metric_families

from proxy.wire.fields import TO_ENGINE
from worker_vllm.asgi import (
    ON_DISCONNECT,
    App,
    CutShortError,
    Receive,
    Request,
    Scope,
    Send,
    fetch,
)
from worker_vllm.engine import starting
from worker_vllm.engine.base import MODELS_PATH, EngineError, Reading, reading_of
from worker_vllm.engine.health import HEALTH_PATH, Health, Pace
from worker_vllm.log import Stage

DEFAULT_SLOTS = 64
CONNECT_TIMEOUT_SECONDS = 10.0
CONNECT_RETRY_SECONDS = 0.5
START_POLL_SECONDS = 0.5
# Time that a server may take to load its model.
START_TIMEOUT_SECONDS = 600.0
METRICS_PATH = "/metrics"
# Errors after which no byte of the request has been sent, so that a retry is safe.
CONNECT_ERRORS = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
FORWARDED_HEADERS = (b"content-type", b"accept", b"authorization", *TO_ENGINE)


class UpstreamEngine:
    """See `Engine`."""

    # The default is immutable.
    def __init__(self, url: str, key: str, stage: Stage, pace: Pace = Pace()) -> None:  # noqa: B008
        self._url = url.removesuffix("/v1")
        self._stage = stage
        self._pace = pace
        self._stack = AsyncExitStack()
        self._session: aiohttp.ClientSession | None = None
        self._health: Health | None = None
        self.name = f"upstream {self._url}"
        self.authorization = f"Bearer {key}" if key else ""
        self.slots = DEFAULT_SLOTS

    @property
    def dead(self) -> bool:
        return bool(self.failure)

    @property
    def failure(self) -> str:
        return self._health.failure if self._health is not None else ""

    @property
    def app(self) -> App:
        return self.serve

    def fields(self, path: str) -> frozenset[str]:  # noqa: ARG002 - its request models are unknown
        return frozenset()

    def routes(self) -> frozenset[str]:
        return frozenset()

    async def read(self) -> Reading | None:
        """Return the load from the server's metrics, if it has those of vLLM."""
        try:
            status, text = await fetch(self.serve, Request("GET", METRICS_PATH), self.authorization)
            if status != HTTPStatus.OK:
                return None
            samples: list[tuple[str, float]] = []
            for family in text_string_to_metric_families(text.decode()):
                samples += [(sample.name, sample.value) for sample in family.samples]
            return reading_of(samples)
        except (CutShortError, ValueError):
            return None

    def progress(self) -> None:
        """Return None: silence of a call for minutes does not mean a hang (see `health`)."""

    def kill(self) -> None:
        """Do nothing: the worker has not started the server's processes."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(_session())
            health = Health(self._session, self._url, self.authorization, self._pace)
            await self._until_up(health)
            self._health = health
            stack.push_async_callback(_end, asyncio.create_task(health.watch()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request (ASGI).

        When the caller disconnects, the connection to the server is closed, which ends the request
        there.
        """
        body = (await receive()).get("body", b"")
        forwarding = asyncio.current_task()
        has_left = False

        def leave() -> None:
            nonlocal has_left
            has_left = True
            if forwarding is not None:
                forwarding.cancel()

        watching = None
        if ON_DISCONNECT in scope:
            scope[ON_DISCONNECT] = leave
        else:
            # The server of the metrics has called.
            watching = asyncio.ensure_future(_watch(receive, leave))
        try:
            await self._forward(scope, body, send)
        except asyncio.CancelledError:
            if not has_left:
                raise
        finally:
            if watching is not None:
                watching.cancel()

    async def _forward(self, scope: Scope, body: bytes, send: Send) -> None:
        try:
            async with await self._request(scope, body) as response:
                start = [(name.lower(), value) for name, value in response.raw_headers]
                await send(
                    {"type": "http.response.start", "status": response.status, "headers": start}
                )
                async for data in response.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, OSError) as error:
            structlog.get_logger().warning(
                "upstream.call_failed", path=scope["path"], error=repr(error)
            )
            raise EngineError("the connection to the upstream server was lost") from None

    async def _request(self, scope: Scope, body: bytes) -> aiohttp.ClientResponse:
        """Send a request; return its response, whose body has not been read.

        A server that refuses connections may be restarting. In that case no byte of the request
        has been sent, so it is retried until the server is lost. Requests for the server's health
        or metrics are not retried.
        """
        assert self._session is not None  # noqa: S101 - the engine has started
        headers = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in FORWARDED_HEADERS
        }
        path = scope["path"]
        query = scope["query_string"].decode()
        url = f"{self._url}{path}{'?' + query if query else ''}"
        while True:
            try:
                return await self._session.request(
                    scope["method"], url, data=body or None, headers=headers, allow_redirects=False
                )
            except CONNECT_ERRORS:
                if self.dead or path in (HEALTH_PATH, METRICS_PATH):
                    raise
            await asyncio.sleep(CONNECT_RETRY_SECONDS)

    async def _until_up(self, health: Health) -> None:
        """Wait until the server lists its models; report what it waits for.

        Raises EngineError if the server responds with an error that does not pass, or if it has not
        responded after `START_TIMEOUT_SECONDS`.
        """
        reason = ""
        self._stage(f"waiting for {self._url}")
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                while True:
                    found = await starting.reason_to_wait(health, self._url)
                    if not found:
                        return
                    if found != reason:
                        reason = found
                        self._stage(f"waiting for {self._url}: {reason}")
                    await asyncio.sleep(START_POLL_SECONDS)
        except TimeoutError:
            raise EngineError(
                f"{self._url}{MODELS_PATH} does not answer: {reason or 'no answer'}."
                " Check WORKER_UPSTREAM (--upstream)"
            ) from None


def _session() -> aiohttp.ClientSession:
    """Return a session without connection limit, response timeout and decompression.

    The worker's slots limit the number of connections.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "User-Agent", "Content-Type"),
    )


async def _watch(receive: Receive, leave: Callable[[], None]) -> None:
    """Call `leave` when the caller disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
