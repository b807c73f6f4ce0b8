"""What the shared fixtures give: lines that were started once for all stories of a run."""

from dataclasses import dataclass
from pathlib import Path

from harness.proxy.server import Proxy
from harness.worker.process import WorkerProcess


@dataclass(frozen=True)
class Line:
    """A proxy with its scripted workers."""

    proxy: Proxy
    workers: list[WorkerProcess]

    async def running(self) -> float:
        """How many requests the engines work on."""
        return sum(
            [await one.metric(self.proxy.http, "num_requests_running") for one in self.workers]
        )


@dataclass(frozen=True)
class Real(Line):
    """A proxy whose workers run vLLM, and where what their engines send is recorded."""

    records: Path
