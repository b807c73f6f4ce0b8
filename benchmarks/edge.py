"""CPU time per request of the guard and the gate, compared with uvicorn's own protocol.

    .venv/bin/python benchmarks/edge.py

No socket and no client take part: each protocol receives the bytes of a request, as from the event
loop, and has an application that responds at once. All variants run in the same process and take
turns, so that other load of the machine affects all of them equally.
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
from proxy.edge.connections import ConnectionLimiter, Pace
from proxy.edge.gate import Backend, Gate, Table
from proxy.edge.guard import EdgeContext, GuardProtocol
from proxy.edge.head import Hosts
from proxy.edge.protocol import HttpProtocol, WatchedProtocol

ROUNDS = 15
REQUESTS_PER_ROUND = 2_000
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 300}]}).encode()
HEAD = (
    "POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1:8000", "Accept-Encoding: gzip, deflate",
    "Connection: keep-alive", "Accept: application/json", "Content-Type: application/json",
    "User-Agent: OpenAI/Python 3.0.0", "X-Stainless-Lang: python",
    "X-Stainless-Package-Version: 3.0.0", "X-Stainless-OS: Linux", "X-Stainless-Arch: x64",
    "X-Stainless-Runtime: CPython", "X-Stainless-Runtime-Version: 3.11",
    "Authorization: Bearer sk-some-key", "x-stainless-retry-count: 0",
    "x-stainless-read-timeout: 600", f"Content-Length: {len(BODY)}",
)  # fmt: skip
REQUEST = "\r\n".join(HEAD).encode() + b"\r\n\r\n" + BODY


class Transport:
    """A transport that discards all data and counts its bytes."""

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
    """The proxy's protocol without the guard."""


class Answer:
    """A backend that responds at once."""

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"ok"})

    async def refuse(self, *_: Any) -> None:
        raise AssertionError


async def measure(protocol: Any) -> float:
    """Return the CPU time per request in microseconds."""
    transport = Transport()
    protocol.connection_made(transport)
    began = time.process_time()
    for _ in range(REQUESTS_PER_ROUND):
        protocol.data_received(REQUEST)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    took = time.process_time() - began
    if transport.written < REQUESTS_PER_ROUND * 20:
        sys.exit("Some requests were not answered.")
    protocol.connection_lost(None)
    return took / REQUESTS_PER_ROUND * 1e6


async def main() -> None:
    """Measure all variants in turns, and print the medians as JSON lines."""
    answer = Answer()
    keys = Keys([stored_key("me=sk-some-key", Kind.CLIENT)])
    table = Table()
    gate = Gate(keys, table, dict.fromkeys(Backend, answer))
    edge = EdgeContext(Hosts(), Pace(), ConnectionLimiter(1000), table.render_error, gate.is_worker)
    makers: dict[str, tuple[Any, Any]] = {
        "uvicorn": (HttpToolsProtocol, answer),
        "without the guard": (Unguarded, answer),
        "guard": (partial(GuardProtocol, edge), answer),
        "guard and gate": (partial(GuardProtocol, edge), gate),
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
        figure = {"figure": f"edge: {name}", "value": round(middle, 1), "unit": "µs"}
        print(json.dumps(figure | {"ratio": middle / peer}))


if __name__ == "__main__":
    asyncio.run(main())
