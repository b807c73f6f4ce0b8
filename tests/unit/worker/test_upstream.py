import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from tests.unit.worker.support import CHAT, DEADLINE, chat, until
from worker_vllm.asgi import CutShortError, Head, call, fetch
from worker_vllm.engine.base import EngineError, read_models
from worker_vllm.engine.upstream import EVENT_BYTES, UpstreamEngine, cut_at_blank_line


class Server:
    """An OpenAI-compatible server whose chat answers as a test says."""

    def __init__(self) -> None:
        self.url = ""
        self.gone = asyncio.Event()  # a client left in the middle
        self.healthy = True
        self.key = ""
        self.seen: list[web.Request] = []
        self.pieces = [b"data: 1\n", b"\ndata: 2\n\ndata: [DO", b"NE]\n\n"]
        self.taken = asyncio.Event()
        self.cut = False

    async def models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        return web.json_response({"data": [{"id": "base"}, {"id": "lora", "parent": "base"}]})

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 500)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        body = await request.read()
        if b'"endless"' in body:
            return await self.endless(request)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
            await asyncio.sleep(0.01)  # so that they leave one by one
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
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_get("/health", server.health)
    app.router.add_post(CHAT, server.chat)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


def engine_of(server: Server, key: str = "") -> UpstreamEngine:
    return UpstreamEngine(server.url, key, lambda _: None)


async def test_models_come_from_the_server(server: Server) -> None:
    async with engine_of(server) as engine:
        models = await read_models(engine)

    assert [(model.id, model.base) for model in models] == [("base", True), ("lora", False)]


async def test_pieces_are_cut_anew_at_blank_lines(server: Server) -> None:
    async with engine_of(server) as engine:
        pieces = [piece async for piece in call(engine.app, chat())]

    assert pieces[0] == Head(200, "text/event-stream")
    assert b"".join(piece for piece in pieces[1:] if isinstance(piece, bytes)) == b"".join(server.pieces)
    assert all(isinstance(piece, bytes) and piece.endswith(b"\n\n") for piece in pieces[1:])


async def test_the_request_arrives_as_it_was_sent(server: Server) -> None:
    request = chat("a message")
    async with engine_of(server, "key") as engine:
        await fetch(engine.app, request, engine.authorization)

    (seen,) = server.seen
    assert await seen.read() == request.body
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["authorization"] == "Bearer key"
    assert "accept-encoding" not in seen.headers


async def test_a_cut_body_stays_cut(server: Server) -> None:
    server.cut = True
    async with engine_of(server) as engine:
        with pytest.raises(CutShortError):
            await fetch(engine.app, chat())


async def test_an_unreachable_server_is_no_answer(server: Server) -> None:
    async with engine_of(server) as engine:
        engine._url = "http://127.0.0.1:1"
        with pytest.raises(CutShortError):
            await fetch(engine.app, chat())


async def test_leaving_closes_the_connection(server: Server) -> None:
    async with engine_of(server) as engine:
        async with contextlib.aclosing(call(engine.app, chat("endless"))) as answer:  # type: ignore[type-var]
            await anext(answer)
            await anext(answer)
        async with asyncio.timeout(DEADLINE):
            await server.gone.wait()


async def test_a_server_that_is_gone_is_a_dead_engine(server: Server) -> None:
    async with UpstreamEngine(server.url, "", lambda _: None, probe_every=0.01) as engine:
        assert not engine.dead
        server.healthy = False
        await until(lambda: engine.dead)


async def test_a_missing_key_is_told(server: Server) -> None:
    server.key = "needed"
    with pytest.raises(EngineError, match="WORKER_UPSTREAM_KEY"):
        async with engine_of(server):
            pass


@pytest.mark.parametrize(
    ("data", "whole", "kept"),
    [
        (b"", b"", b""),
        (b"data: 1", b"", b"data: 1"),
        (b"data: 1\n\n", b"data: 1\n\n", b""),
        (b"data: 1\n\ndata: 2\n\nda", b"data: 1\n\ndata: 2\n\n", b"da"),
        (b"data: 1\r\n\r\nda", b"data: 1\r\n\r\n", b"da"),
        (b"x" * (EVENT_BYTES + 1), b"x" * (EVENT_BYTES + 1), b""),
    ],
)
def test_cut_at_blank_line(data: bytes, whole: bytes, kept: bytes) -> None:
    assert cut_at_blank_line(data) == (whole, kept)
