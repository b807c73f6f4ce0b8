"""Serves the engine's /metrics and /health on a loopback port. Other routes are not reachable."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import structlog
import uvicorn

from worker_vllm.asgi import App, Receive, Scope, Send

SERVED_PATHS = ("/metrics", "/health")
HOST = "127.0.0.1"


def only_metrics(app: App) -> App:
    """Return the engine's app, restricted to `SERVED_PATHS`."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] in SERVED_PATHS:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send(
                {
                    "type": "http.response.start",
                    "status": 404,
                    "headers": [(b"content-type", b"text/plain")],
                }
            )
            await send({"type": "http.response.body", "body": b"Not Found\n"})

    return guard


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the handling of signals to the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serve_metrics(app: App, port: int | None) -> AsyncIterator[None]:
    """Serve while the context is open. Port None disables the server; 0 selects a free port."""
    if port is None:
        yield
        return
    listener = socket.create_server((HOST, port))
    structlog.get_logger().info(
        "metrics.listening", url=f"http://{HOST}:{listener.getsockname()[1]}/metrics"
    )
    config = uvicorn.Config(
        only_metrics(app), lifespan="off", access_log=False, log_config=None, ws="none"
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
