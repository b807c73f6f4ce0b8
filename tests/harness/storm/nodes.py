"""The processes of a storm: each can be killed, started again, and stopped for a while."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import STDOUT, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


@dataclass
class Node:
    """A process with the same arguments each time it is started. Its output goes to a file."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path = ROOT
    process: Process | None = None

    async def start(self) -> None:
        """Start the process."""
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self.arguments,
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=STDOUT,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    async def kill(self) -> None:
        """End the process at once, as by a power failure."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    @property
    def is_running(self) -> bool:
        """True unless the process has ended by itself."""
        return self.process is not None and self.process.returncode is None


def proxy_node(port: int, folder: Path, token: str, **more: str) -> Node:
    """Return a proxy with a SQLite store in `folder`."""
    flags = ("--port", str(port), "--data-dir", str(folder / "data"))
    arguments = (sys.executable, "-m", "proxy.cli", "proxy", *flags)
    environment = {"PROXY_WORKER_TOKEN": token, **more}
    return Node("proxy", arguments, environment, folder / "proxy.log")


def worker_node(name: str, url: str, folder: Path, token: str, slots: int, **more: Any) -> Node:
    """Return a worker with the scripted engine."""
    settings = {
        "engine": "scripted",
        "connect": url,
        "token": token,
        "id": name,
        "max_concurrency": slots,
        "heartbeat_seconds": 0.5,
        **more,
    }
    environment = {f"WORKER_{key.upper()}": str(value) for key, value in settings.items()}
    arguments = (sys.executable, "-m", "worker_vllm")
    return Node(name, arguments, environment, folder / f"{name}.log")


def stock_node(
    name: str, python: str, handler: Path, variables: Mapping[str, str], folder: Path
) -> Node:
    """Return a worker with Runpod's SDK, which runs in the environment of `python`."""
    return Node(name, (python, str(handler)), variables, folder / f"{name}.log", handler.parent)
