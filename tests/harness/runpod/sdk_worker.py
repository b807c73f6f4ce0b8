"""Stock workers: the Runpod SDK in a process of its own, with a handler of `tests/handlers`."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.proxy.server import Proxy, serving
from harness.tools.environments import python
from harness.tools.waiting import until
from proxy.cli.stock_worker import environment

# The environments of the SDK's versions.
SDK = ".venv-sdk"
SDK2 = ".venv-runpod2"
SDKS = (
    pytest.param(SDK, id="runpod 1.12"),
    pytest.param(SDK2, id="runpod 2.0", marks=pytest.mark.slow),
)
# Where most of the time would repeat what other tests of 2.0 show.
SDKS_OF_TORTURE = (SDKS[0], pytest.param(SDK2, id="runpod 2.0", marks=pytest.mark.torture))

HANDLERS = Path(__file__).parents[2] / "handlers"
STOP_SECONDS = 20.0
START_SECONDS = 60.0


@dataclass
class StockProcess:
    """A stock worker in a process of its own."""

    process: Process
    id: str
    lines: list[str] = field(default_factory=list)

    def notes(self, kind: str, job: str) -> int:
        """Return the number of notes of this kind that the handler has printed about a job."""
        return self.lines.count(f"note {kind} {job}")

    async def noted(self, kind: str, job: str, seconds: float = 20.0) -> None:
        """Wait until the handler has printed this note."""
        await until(lambda: self.notes(kind, job) > 0, seconds, f"{kind} {job}")

    async def stop(self) -> int:
        """Ask the process to exit, and wait for it."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), STOP_SECONDS)


def stock_proxy(**settings: Any) -> AbstractAsyncContextManager[Proxy]:
    """Run a proxy that detects the loss of a stock worker quickly."""
    return serving(
        **{"poll_hold": 2.0, "ping_lease": 6.0, "line_gap": 2.0, "queue_timeout": 30.0} | settings
    )


@asynccontextmanager
async def stock_worker(
    proxy: Proxy,
    handler: str,
    endpoint: str = "default",
    *,
    sdk: str = SDK,
    pod: str = "",
    wait: bool = True,
    **more: str,
) -> AsyncIterator[StockProcess]:
    """Run a stock worker of this proxy; `sdk` is the environment of its SDK, `more` are variables.

    All its processes are stopped when the context ends.
    """
    pod = pod or f"pod-{os.urandom(4).hex()}"
    variables = environment(proxy.url, endpoint, proxy.parts.token, pod, ping_millis=1000)
    process = await asyncio.create_subprocess_exec(
        *(python(sdk), str(HANDLERS / handler)),
        cwd=HANDLERS, env=os.environ | variables | more,
        stdout=PIPE, stderr=STDOUT, start_new_session=True,
    )  # fmt: skip
    running = StockProcess(process, pod)
    reading = asyncio.create_task(_read(running))
    try:
        if wait:
            await until(
                lambda: _is_ready(proxy, running), START_SECONDS, f"{handler} asks for jobs"
            )
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await reading


def _is_ready(proxy: Proxy, running: StockProcess) -> bool:
    assert running.process.returncode is None, "\n".join(running.lines)
    return any(one.id == running.id and one.credit > 0 for one in proxy.parts.fleet)


async def _read(running: StockProcess) -> None:
    assert running.process.stdout is not None
    # A line may be too long.
    with suppress(ValueError):
        async for line in running.process.stdout:
            running.lines.append(line.decode(errors="replace").rstrip())
