"""The mock upstream: an OpenAI-compatible server that costs nearly nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .model import Rig, RunningSide
from .ports import free_port
from .processes import LOAD_CORE, pinned, until_ready

# As many events as the frame pump has in one chunk.
COALESCED_EVENTS = 16


@asynccontextmanager
async def mock_upstream(rig: Rig) -> AsyncIterator[RunningSide]:
    """Run the mock upstream."""
    port = free_port()
    log = rig.folder / f"mock-{port}.log"
    flags = ("--port", str(port), "--coalesce", str(COALESCED_EVENTS))
    async with pinned(LOAD_CORE, str(rig.mock), *flags, log=log) as process:
        await until_ready(process, log, f"http://127.0.0.1:{port}/v1/models")
        yield RunningSide(port, {"mock": process.pid})
