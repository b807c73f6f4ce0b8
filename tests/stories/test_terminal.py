"""Terminals never execute escape sequences from a server, a model or a worker."""

import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from harness.proxy.command import command
from harness.tools.terminal import terminal
from harness.tools.waiting import until

from proxy.cli.up import new_worker_id
from proxy.scaler.process import Command, ProcessProvider

pytestmark = pytest.mark.slow

CLIPBOARD, TITLE, CLEAR, C1 = (
    "\x1b]52;c;cm0=\x07",
    "\x1b]0;owned\x1b\\",
    "\x1b[2J\x1b[3J",
    "\x9b2J\x9d0;x\x9c",
)
ATTACK = f"{CLIPBOARD}{TITLE}{CLEAR}{C1}\r\u202e\u2028[bold]:smile:[/nope]"
SHOWN = (
    r"\x1b]52;c;cm0=\x07\x1b]0;owned\x1b\\x1b[2J\x1b[3J"
    r"\x9b2J\x9d0;x\x9c\r\u202e\u2028[bold]:smile:[/nope]"
)
OBEYED = re.compile("\x1b\\][0-9]|\x1b\\[[23]J|[\x07\x80-\x9f\u202e\u2028]")
# A hostile name that the proxy accepts.
MODEL = "\u202emodel[/nope]"


@asynccontextmanager
async def hostile(pieces: Sequence[str] = (), model: str = ATTACK) -> AsyncIterator[str]:
    """Yield the URL of a server that attacks the terminal; `pieces` form its first answer."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})

    async def chat(request: web.Request) -> web.StreamResponse:
        if len((await request.json())["messages"]) > 1:
            return web.json_response({"error": {"message": ATTACK}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            chunk: dict[str, Any] = {
                "id": "x",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": "m",
            }
            chunk["choices"] = [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def other(_: web.Request) -> web.Response:
        return web.Response(text=ATTACK, status=401)

    app = web.Application()
    app.router.add_get("/livez", health)
    app.router.add_get("/{place:.*}v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_route("*", "/{path:.*}", other)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_chat_escapes_the_text_of_models_and_servers_however_it_is_split() -> None:
    whole = f"one\n\ttwo {ATTACK}"
    async with hostile(pieces=[*whole, whole, "\ud83d", " the end"]) as url:
        async with terminal("chat", "--base-url", f"{url}/v1", COLUMNS="200") as (screen, _):
            await screen.shows(f"{SHOWN} at {url}")
            screen.type("hello\n")
            for _ in range(2):
                await screen.shows("one\r\n")
                await screen.shows(f"two {SHOWN}")
            await screen.shows(r"\ud83d the end")
            await screen.shows("> ")
            screen.type("again\n")
            await screen.shows(SHOWN)
            await screen.shows("> ")
    assert not OBEYED.search(screen.seen.decode(errors="replace"))


async def test_doctor_and_a_worker_escape_the_text_of_a_refusal() -> None:
    async with hostile() as url:
        worker = ("worker", "--connect", url, "--upstream", url)
        async with (
            command("doctor", "--connect", url, COLUMNS="300", WORKER_TOKEN="wrong") as doctor,
            command(*worker, WORKER_TOKEN="wrong") as refused,
        ):
            assert await doctor.process.wait() == 1
            assert await refused.process.wait() == 78
            await doctor.says("NOT worker token")
            await refused.says("worker.ended")
    assert SHOWN in doctor.text
    assert f"answered 401: {SHOWN}" in refused.text
    assert not OBEYED.search(doctor.text + refused.text)


async def test_up_escapes_the_stages_and_models_of_its_workers(tmp_path: Path) -> None:
    async with hostile(model=MODEL) as url:
        given = ("--port", "0", "--data-dir", str(tmp_path), "--upstream", f"{url}/[/nope]")
        async with terminal("up", *given, COLUMNS="200") as (screen, _):
            await screen.shows(f"waiting for {url}/[/nope] (")
            await screen.shows(r"model     \u202emodel[/nope]")
    assert not OBEYED.search(screen.seen.decode(errors="replace").replace("\x1b[2K", ""))


async def test_a_line_of_a_worker_is_escaped_in_its_log_and_on_the_terminal(
    tmp_path: Path,
) -> None:
    heard: list[str] = []
    log = tmp_path / "worker-1.log"
    code = f"import sys; sys.stdout.buffer.write({ATTACK.encode()!r} + b'\\xff\\n'); sys.exit(2)"
    said = f"{SHOWN}\ufffd"
    provider = ProcessProvider(
        Command([sys.executable, "-c", code], lambda _number, _worker: {}),
        lambda _worker, line: heard.append(line),
        lambda _number: log.open("wb"),
        new_worker_id,
    )
    async with provider.open(lambda _: None):
        provider.scale(1)
        await until(lambda: heard == [said], what=f"{heard}")
    assert log.read_text() == f"{said}\n"
