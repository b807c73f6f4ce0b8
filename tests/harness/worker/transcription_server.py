"""A generic transcription server: it records the form and responds with JSON or a stream."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from aiohttp import web

WORDS = ("What ", "was ", "said.")
MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Heard:
    """A received form."""

    path: str
    # The name, the content type and the digest of the file.
    file: tuple[str, str, str]
    fields: list[tuple[str, str]]


@dataclass
class Speech:
    """The transcription server."""

    model: str
    url: str = ""
    heard: list[Heard] = field(default_factory=list)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": self.model, "object": "model", "created": 0}]}
        )

    async def listen(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        fields = [(name, value) for name, value in form.items() if isinstance(value, str)]
        speech = form["file"]
        assert isinstance(speech, web.FileField)
        data = speech.file.read()
        values = (speech.filename, speech.content_type, sha256(data).hexdigest())
        self.heard.append(Heard(request.path, values, fields))
        if not data:
            return web.json_response({"error": {"message": "no file", "code": 400}}, status=400)
        if ("model", self.model) not in fields:
            return web.json_response(
                {"error": {"message": "another model", "code": 404}}, status=404
            )
        if ("stream", "true") in fields:
            return await self._stream(request)
        return web.json_response(
            {"text": "".join(WORDS), "usage": {"type": "duration", "seconds": 1}}
        )

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for word in WORDS:
            await response.write(_event({"type": "transcript.text.delta", "delta": word}))
        await response.write(
            _event({"type": "transcript.text.done", "text": "".join(WORDS)}) + b"data: [DONE]\n\n"
        )
        return response


@asynccontextmanager
async def speech(model: str) -> AsyncIterator[Speech]:
    """Run a server with one model on a free port."""
    running = Speech(model)
    app = web.Application(client_max_size=MOST_BYTES)
    app.router.add_get("/v1/models", running.models)
    app.router.add_post("/v1/audio/transcriptions", running.listen)
    app.router.add_post("/v1/audio/translations", running.listen)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield running
    finally:
        await runner.cleanup()


def _event(values: dict[str, str]) -> bytes:
    return b"data: " + json.dumps(values).encode() + b"\n\n"
