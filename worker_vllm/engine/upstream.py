"""Any OpenAI-compatible server, reached over HTTP: an ASGI app that passes requests on and streams the answers back.

Bodies are passed on packet by packet. An answer that breaks off stays so: the app ends without the last part of its
body, and the handler reports the run as lost.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus
from types import TracebackType
from typing import Self

import aiohttp
import structlog
from prometheus_client.parser import text_string_to_metric_families

from worker_vllm.asgi import App, CutShortError, Receive, Request, Scope, Send, fetch
from worker_vllm.engine.base import MODELS_PATH, EngineError, Reading, reading_of
from worker_vllm.engine.health import HEALTH_PATH, Health, Pace
from worker_vllm.log import Stage

DEFAULT_SLOTS = 64
CONNECT_SECONDS = 10.0
CONNECT_AGAIN_SECONDS = 0.5
START_EVERY_SECONDS = 0.5
START_SECONDS = 600.0  # how long a server that loads its model is waited for
METRICS_PATH = "/metrics"
NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
PASSED_ON = (b"content-type", b"accept", b"authorization")


class UpstreamEngine:
    """See `Engine`."""

    def __init__(self, url: str, key: str, stage: Stage, pace: Pace = Pace()) -> None:  # noqa: B008 - immutable
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

    def fields(self, path: str) -> frozenset[str]:  # noqa: ARG002 - no route can be asked
        return frozenset()

    async def read(self) -> Reading | None:
        """From the server's metrics, where it has vLLM's."""
        try:
            status, text = await fetch(self.serve, Request("GET", METRICS_PATH), self.authorization)
            families = (
                text_string_to_metric_families(text.decode()) if status == HTTPStatus.OK else ()
            )
            return reading_of(
                (sample.name, sample.value) for family in families for sample in family.samples
            )
        except (CutShortError, ValueError):
            return None

    def progress(self) -> None:
        """A call that sends nothing for long is no sign of a hang (see `health`)."""

    def kill(self) -> None:
        """Its processes are not ours."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._session = await stack.enter_async_context(_session())
            health = Health(self._session, self._url, self.authorization, self._pace)
            self._stage(f"waiting for {self._url}")
            try:
                await asyncio.wait_for(self._until_up(health), START_SECONDS)
            except TimeoutError:
                message = f"{self._url}{MODELS_PATH} does not answer: see WORKER_UPSTREAM"
                raise EngineError(message) from None
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
        """The ASGI app. When its caller leaves, the connection to the server is closed, which ends the work there."""
        body = (await receive()).get("body", b"")
        passing = asyncio.ensure_future(self._pass_on(scope, body, send))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            passing.cancel()
            await asyncio.wait({passing, leaving})
        if not passing.cancelled():
            passing.result()

    async def _pass_on(self, scope: Scope, body: bytes, send: Send) -> None:
        try:
            async with await self._asked(scope, body) as response:
                content_type = response.headers.get("content-type", "")
                start = [(b"content-type", content_type.encode("latin-1"))]
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

    async def _asked(self, scope: Scope, body: bytes) -> aiohttp.ClientResponse:
        """Send a request; return the beginning of its response.

        A server that cannot be connected to may be restarting. Nothing of the request was sent then, so it is tried
        again until the server is lost, unless it asks for the server's health itself.
        """
        assert self._session is not None  # noqa: S101 - the engine has started
        headers = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in PASSED_ON
        }
        path, query = scope["path"], scope["query_string"].decode()
        url = f"{self._url}{path}{'?' + query if query else ''}"
        while True:
            try:
                return await self._session.request(
                    scope["method"], url, data=body or None, headers=headers, allow_redirects=False
                )
            except NOT_SENT:
                if self.dead or path in (HEALTH_PATH, METRICS_PATH):
                    raise
            await asyncio.sleep(CONNECT_AGAIN_SECONDS)

    async def _until_up(self, health: Health) -> None:
        """Wait until the server lists its models, or answers what waiting does not change."""
        while True:
            with suppress(aiohttp.ClientError, OSError):
                status = await health.status(MODELS_PATH)
                if status == HTTPStatus.UNAUTHORIZED:
                    raise EngineError(f"{self._url} wants an API key: see WORKER_UPSTREAM_KEY")
                if status < HTTPStatus.BAD_REQUEST:
                    return
            await asyncio.sleep(START_EVERY_SECONDS)


def _session() -> aiohttp.ClientSession:
    """No limit on connections (the worker's slots are one), no deadline on answers, bodies as they come."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "User-Agent", "Content-Type"),
    )


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
