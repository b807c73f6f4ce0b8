"""An OpenAI server for `--upstream` that records what it receives and answers as the test says."""

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "upstream"


@dataclass(frozen=True)
class Heard:
    """A received request: the pairs of its header, with names in lower case, and its body."""

    path: str
    fields: list[tuple[str, str]]
    body: Any

    def __getitem__(self, name: str) -> str | None:
        """Return the value of a header field."""
        return dict(self.fields).get(name)


@dataclass(frozen=True)
class Answer:
    """A response with a JSON body or, if it is bytes, with an event stream."""

    body: Any
    status: int = 200
    fields: dict[str, str] = field(default_factory=dict)


SERVED = Answer({"id": "chatcmpl-1", "object": "chat.completion", "choices": []})
STREAMED = Answer(b'data: {"id":"chatcmpl-1","choices":[]}\n\ndata: [DONE]\n\n')


def refusal(status: int, code: str | None = None, **fields: str) -> Answer:
    """Return an error response; `_` in the name of a field stands for `-`."""
    error = {"message": "slow down", "type": "rate_limit", "param": None, "code": code}
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return Answer({"error": error}, status, named)


@dataclass
class UpstreamServer:
    """The server. `answers` are used up in their order; after them it serves every call."""

    url: str = ""
    answers: deque[Answer] = field(default_factory=deque)
    heard: list[Heard] = field(default_factory=list)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def serve(self, request: web.Request) -> web.Response:
        fields = [(name.lower(), value) for name, value in request.headers.items()]
        body = await request.json()
        self.heard.append(Heard(request.path, fields, body))
        default = STREAMED if body.get("stream") else SERVED
        answer = self.answers.popleft() if self.answers else default
        is_stream = isinstance(answer.body, bytes)
        return web.Response(
            body=answer.body if is_stream else json.dumps(answer.body).encode(),
            status=answer.status,
            headers={"Content-Type": "text/event-stream" if is_stream else "application/json"}
            | answer.fields,
        )


@asynccontextmanager
async def upstream_server() -> AsyncIterator[UpstreamServer]:
    """Run a server on a free port."""
    running = UpstreamServer()
    app = web.Application()
    app.router.add_get("/v1/models", running.models)
    app.router.add_post("/{path:.*}", running.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield running
    finally:
        await runner.cleanup()
