import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal, TypeAlias

import pytest
from aiohttp import web

from proxy.wire.frames import End
from tests.unit.worker.support import CHAT, DEADLINE, chat, fake_proxy, until, working
from worker_vllm.asgi import CutShortError, Exchange, Head, Request, fetch
from worker_vllm.engine.base import EngineError, read_models
from worker_vllm.engine.health import Pace
from worker_vllm.engine.upstream import UpstreamEngine
from worker_vllm.engine.watchdog import watch
from worker_vllm.handler import Answer, Part, RunLostError

FAST_PACE = Pace(every=0.005, timeout=0.2)
SLOW_PACE = Pace(every=60.0)
Health: TypeAlias = int | Literal["silent", "slow", "reset"]


class Server:
    """An OpenAI-compatible server whose responses a test defines."""

    def __init__(self) -> None:
        self.url = ""
        # Set when a client has disconnected during a response.
        self.gone = asyncio.Event()
        self.key = ""
        self.seen: list[web.Request] = []
        self.pieces = [b"data: 1\n", b"\ndata: 2\n\ndata: [DO", b"NE]\n\n"]
        # Chat requests wait for it.
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.cut = False
        # The results of the next health probes. The last one is used for all later probes.
        self.healths: list[Health] = [200]
        # The same for lists of models.
        self.lists: list[Health] = [200]
        self.cards: dict[str, list[dict[str, str]]] = {
            "data": [{"id": "base"}, {"id": "lora", "parent": "base"}]
        }
        # The paths of all probes so far.
        self.probes: list[str] = []
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> int:
        """Start to listen; return the port."""
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_post(CHAT, self.chat)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return int(port)

    async def stop(self) -> None:
        """Stop listening, and abort open connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def models(self, request: web.Request) -> web.StreamResponse:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        status = await self._probed(request, self.lists)
        return web.json_response(self.cards, status=status)

    async def health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=await self._probed(request, self.healths))

    async def _probed(self, request: web.Request, script: list[Health]) -> int:
        self.probes.append(request.path)
        health = script.pop(0) if len(script) > 1 else script[0]
        match health:
            case "silent":
                await asyncio.Event().wait()
            case "slow":
                await asyncio.sleep(0.05)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
            case int():
                return health
        return 200

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        body = await request.read()
        if b'"endless"' in body:
            return await self.endless(request)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await self.may_answer.wait()
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
            # The pieces shall be separate packets.
            await asyncio.sleep(0.01)
        if self.cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: more\n\n")
                await asyncio.sleep(0.001)
        finally:
            self.gone.set()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


def engine_of(server: Server, key: str = "", pace: Pace = FAST_PACE) -> UpstreamEngine:
    return UpstreamEngine(server.url, key, lambda _: None, pace)


async def test_models_come_from_the_server(server: Server) -> None:
    async with engine_of(server) as engine:
        models = await read_models(engine)

    assert [(model.id, model.base) for model in models] == [("base", True), ("lora", False)]
    # Unknown.
    assert [model.routes for model in models] == [[], []]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (404, "is not an OpenAI-compatible server: it answers 404 to GET /v1/models"),
        (302, "is not an OpenAI-compatible server: it answers 302"),
        (501, "is not an OpenAI-compatible server: it answers 501"),
        (401, r"rejects the API key with status 401\. Check WORKER_UPSTREAM_KEY"),
        (403, "rejects the API key with status 403"),
    ],
)
async def test_a_server_that_will_not_become_ready_is_named_at_once(
    server: Server, status: int, says: str
) -> None:
    server.lists = [status]
    with pytest.raises(EngineError, match=says):
        async with engine_of(server):
            pass
    assert server.probes == ["/v1/models"]


async def test_the_reason_of_waiting_is_reported_once(server: Server) -> None:
    server.lists = [503, 503, 200]
    stages: list[str] = []
    async with UpstreamEngine(server.url, "", stages.append, FAST_PACE):
        pass
    begin = f"waiting for {server.url}"
    assert stages == [begin, f"{begin}: it answers 503"]


async def test_a_server_with_another_list_is_named(server: Server) -> None:
    server.cards = {"models": []}
    async with engine_of(server) as engine:
        with pytest.raises(EngineError, match=r"is not an OpenAI-compatible server: .*models"):
            await read_models(engine)


async def test_a_server_that_does_not_use_http_is_named() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as listener:
        url = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        for scheme, says in (("http", "does not answer with HTTP"), ("https", "with TLS")):
            with pytest.raises(EngineError, match=says):
                async with UpstreamEngine(f"{scheme}://{url}", "", lambda _: None):
                    pass


async def test_packets_become_whole_events(server: Server) -> None:
    async with engine_of(server) as engine:
        head, *parts = [part async for part in Answer(engine, chat())]

    assert head == Head(200, "text/event-stream")
    assert b"".join(part.data for part in parts if isinstance(part, Part)) == b"".join(
        server.pieces
    )
    assert all(isinstance(part, Part) and part.data.endswith(b"\n\n") for part in parts)


async def test_a_request_is_forwarded_unchanged(server: Server) -> None:
    request = chat("a message")
    async with engine_of(server, "key") as engine:
        await fetch(engine.app, request, engine.authorization)

    (seen,) = server.seen
    assert await seen.read() == request.body
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["authorization"] == "Bearer key"
    assert "accept-encoding" not in seen.headers


async def test_an_incomplete_body_stays_incomplete(server: Server) -> None:
    server.cut = True
    async with engine_of(server) as engine:
        with pytest.raises(CutShortError):
            await fetch(engine.app, chat())
        with pytest.raises(
            RunLostError, match=r"^the engine closed the connection in the middle of its answer$"
        ):
            _ = [piece async for piece in Answer(engine, chat())]


async def test_a_call_waits_for_a_server_that_restarts(server: Server) -> None:
    async with engine_of(server, pace=SLOW_PACE) as engine:
        await server.stop()
        asking = asyncio.create_task(fetch(engine.app, chat()))
        await asyncio.wait({asking}, timeout=0.1)
        await server.start(int(server.url.rpartition(":")[2]))
        assert await asking == (200, b"".join(server.pieces))


async def test_a_call_to_a_server_that_is_lost_is_lost(server: Server) -> None:
    async with engine_of(server) as engine:
        await server.stop()
        with pytest.raises(
            RunLostError, match="failed 3 health probes in a row, the last with: no connection"
        ) as lost:
            _ = [piece async for piece in Answer(engine, chat())]
        assert lost.value.code == "engine_dead"


async def test_a_health_request_to_an_unreachable_server_fails_at_once(
    server: Server,
) -> None:
    async with engine_of(server, pace=SLOW_PACE) as engine:
        await server.stop()
        with pytest.raises(CutShortError) as cut:
            await fetch(engine.app, Request("GET", "/health"))
    # A client may read the error.
    assert "127.0.0.1" not in repr(cut.value.__cause__)


async def test_a_disconnect_closes_the_connection(server: Server) -> None:
    async with engine_of(server) as engine:
        async with contextlib.aclosing(Exchange(engine.app, chat("endless"))) as answer:
            await anext(answer)
            await anext(answer)
        async with asyncio.timeout(DEADLINE):
            await server.gone.wait()


async def test_a_silent_call_is_not_a_hang(server: Server) -> None:
    server.may_answer.clear()
    async with (
        engine_of(server) as engine,
        fake_proxy() as proxy,
        working(engine, proxy.url) as worker,
    ):
        watching = asyncio.create_task(watch(engine, worker.runtime, 0.1))
        line = await proxy.next_line()
        await line.send_job("j", chat())
        await until(lambda: bool(server.seen))
        await asyncio.wait({watching}, timeout=0.7)
        server.may_answer.set()
        assert (await line.wait_for(End, "j")).ending == "completed"
        assert not watching.done()
        watching.cancel()

    assert line.text("j") == b"".join(server.pieces)


async def test_a_server_that_is_lost_ends_the_worker(server: Server) -> None:
    async with (
        engine_of(server) as engine,
        fake_proxy() as proxy,
        working(engine, proxy.url) as worker,
    ):
        await server.stop()
        async with asyncio.timeout(DEADLINE):
            gone = await watch(engine, worker.runtime, 60)

    assert gone.code == "engine_dead"
    assert (
        gone.message
        == "the upstream server failed 3 health probes in a row, the last with: no connection"
    )


@pytest.mark.parametrize(
    ("healths", "lists", "fault"),
    [
        ([500], [200], "HTTP 500"),
        ([503], [200], "HTTP 503"),
        (["silent"], [200], "timeout"),
        (["reset"], [200], "connection lost"),
        ([200, 502, "silent", "reset"], [200], "connection lost"),
        ([404], [200, 500], "HTTP 500"),
        ([404], [200, "silent"], "timeout"),
    ],
)
async def test_three_failed_probes_in_a_row_lose_the_server(
    server: Server, healths: list[Health], lists: list[Health], fault: str
) -> None:
    server.healths, server.lists = healths, lists
    failing = "/health" if healths != [404] else "/v1/models"
    async with engine_of(server) as engine:
        server.probes.clear()
        await until(lambda: engine.dead)
        assert engine.failure.endswith(f"the last with: {fault}")
    # After a reset aiohttp itself repeats the request once.
    if "reset" not in healths:
        assert server.probes.count(failing) == 3 + healths.count(200)


@pytest.mark.parametrize(
    ("healths", "lists"),
    [
        ([200], [200]),
        (["slow"], [200]),
        ([429], [200]),
        ([408], [200]),
        ([500, "silent", 200, "reset", 503, 200], [200]),
        *[([status], [200]) for status in (301, 401, 403, 404, 405, 410, 501)],
        ([404], [200, 401]),
        ([404], [200, 429]),
        ([404], [200, "slow"]),
        ([404], [200, 500, "silent", 200]),
    ],
)
async def test_a_server_that_responds_is_alive(
    server: Server, healths: list[Health], lists: list[Health]
) -> None:
    server.healths, server.lists = healths, lists
    async with engine_of(server) as engine:
        server.probes.clear()
        await until(lambda: len(server.probes) > 6 or engine.dead)
        assert not engine.dead
    is_missing = isinstance(healths[0], int) and healths[0] not in (200, 408, 429, 500)
    # A missing health route is requested once.
    assert server.probes.count("/health") == (1 if is_missing else len(server.probes))


async def test_a_missing_key_is_named(server: Server) -> None:
    server.key = "needed"
    with pytest.raises(EngineError, match="WORKER_UPSTREAM_KEY"):
        async with engine_of(server):
            pass
