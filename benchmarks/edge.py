"""What the guard and the gate cost: CPU time of a request, beside uvicorn's own protocol, in the same process.

    .venv/bin/python benchmarks/edge.py

No socket and no client: each protocol is given the bytes of a request, as the event loop would, and an application that
answers at once. The three take turns, so that whatever else the machine does is the same for all of them.
"""

import asyncio
import json
import statistics
import sys
import time
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.access.keys import Keys, Kind, stored_key
from proxy.api.app import error_body
from proxy.edge.connections import ConnectionLimiter, Pace
from proxy.edge.gate import Gate
from proxy.edge.guard import EdgeContext
from proxy.edge.head import Hosts
from proxy.edge.protocol import EdgeProtocol, HttpProtocol, WatchedProtocol
from proxy.edge.routes import Room, Table

ROUNDS, REQUESTS = 15, 2_000
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 300}]}).encode()
HEAD = (
    "POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1:8000", "Accept-Encoding: gzip, deflate",
    "Connection: keep-alive", "Accept: application/json", "Content-Type: application/json",
    "User-Agent: OpenAI/Python 3.0.0", "X-Stainless-Lang: python", "X-Stainless-Package-Version: 3.0.0",
    "X-Stainless-OS: Linux", "X-Stainless-Arch: x64", "X-Stainless-Runtime: CPython",
    "X-Stainless-Runtime-Version: 3.11", "Authorization: Bearer sk-some-key", "x-stainless-retry-count: 0",
    "x-stainless-read-timeout: 600", f"Content-Length: {len(BODY)}",
)  # fmt: skip
REQUEST = "\r\n".join(HEAD).encode() + b"\r\n\r\n" + BODY


class Transport:
    """A transport that leads nowhere."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, **_: int) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


class Unguarded(WatchedProtocol, HttpProtocol):
    """The proxy's protocol as it would be without the guard."""


class Answer:
    """A room that answers at once."""

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"ok"})

    async def refuse(self, *_: Any) -> None:
        raise AssertionError


async def measure(protocol: Any) -> float:
    """CPU microseconds of one request."""
    transport = Transport()
    protocol.connection_made(transport)
    begun = time.process_time()
    for _ in range(REQUESTS):
        protocol.data_received(REQUEST)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    took = time.process_time() - begun
    if transport.written < REQUESTS * 20:
        sys.exit("Not every request was answered.")
    protocol.connection_lost(None)
    return took / REQUESTS * 1e6


async def main() -> None:
    """Measure in turns, and print the medians."""
    answer, keys = Answer(), Keys([stored_key("me=sk-some-key", Kind.CLIENT)])
    gate = Gate(keys, Table(), dict.fromkeys(Room, answer))
    door = EdgeContext(Hosts(), Pace(), ConnectionLimiter(1000), error_body, gate.is_worker)
    makers: dict[str, tuple[Any, Any]] = {
        "uvicorn": (HttpToolsProtocol, answer),
        "without the guard": (Unguarded, answer),
        "guard": (partial(EdgeProtocol, door), answer),
        "guard and gate": (partial(EdgeProtocol, door), gate),
    }
    found: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(ROUNDS):
        for name, (make, app) in makers.items():
            config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
            config.load()
            state = uvicorn.server.ServerState()
            found[name].append(await measure(make(config=config, server_state=state, app_state={})))
    peer = statistics.median(found["uvicorn"])
    for name, each in found.items():
        middle = statistics.median(each)
        print(
            json.dumps(
                {
                    "figure": f"edge: {name}",
                    "value": round(middle, 1),
                    "unit": "µs",
                    "ratio": middle / peer,
                }
            )
        )


if __name__ == "__main__":
    asyncio.run(main())
