"""The values of the shared fixtures, which are started once for all stories of a run."""

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
        """The number of requests that the engines are processing."""
        return sum(
            [await one.metric(self.proxy.http, "num_requests_running") for one in self.workers]
        )


@dataclass(frozen=True)
class Real(Line):
    """A proxy whose workers run vLLM, and the folder with the recorded output of the engines."""

    records: Path
