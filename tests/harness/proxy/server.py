"""A proxy on a real socket in this event loop, so that a test can also inspect its state."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from proxy.app import Parts, compose
from proxy.service.clock import Clock
from proxy.serving import listen, running
from proxy.settings import Settings
from proxy.store.base import JobStore
from proxy.system import System

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    parts: Parts
    http: aiohttp.ClientSession

    def openai(self, **more: Any) -> AsyncOpenAI:
        """Return the official OpenAI client for this proxy."""
        return AsyncOpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0} | more
        )

    @property
    def ready(self) -> int:
        """The number of workers that can serve."""
        return sum(worker.is_ready for worker in self.parts.fleet)


@asynccontextmanager
async def serving(
    clock: Clock | None = None, job_store: JobStore | None = None, **settings: Any
) -> AsyncIterator[Proxy]:
    """Run a proxy with these settings on a free port, and drain it at the end.

    The test may provide its own store.
    """
    with TemporaryDirectory() as folder:
        wanted = Settings(**{"port": 0, "data_dir": Path(folder), "drain": 2.0} | settings)
        system = System() if clock is None else System(clock=clock)
        parts = compose(wanted, system, job_store)
        listener = listen(wanted)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with (
            aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http,
            running(parts, listener),
        ):
            yield Proxy(url, parts, http)


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    """A chat request for the scripted engine: `max_tokens` tokens, `seed` microseconds apart."""
    return {
        "model": "scripted",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 5,
    } | more


async def frames(response: aiohttp.ClientResponse) -> list[bytes]:
    """Return the events of a stream until its end, without comments."""
    body = await response.read()
    lines = [line for line in body.splitlines(keepends=True) if not line.startswith(b":")]
    return [event for event in b"".join(lines).split(b"\n\n") if event]
