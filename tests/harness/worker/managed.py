"""Native and stock workers that the proxy's provider keeps running."""

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from harness.proxy.server import Proxy
from harness.runpod.sdk_worker import HANDLERS
from harness.tools.environments import python
from harness.tools.waiting import until
from harness.worker import process as ours
from proxy.cli import stock_worker
from proxy.cli.up import new_worker_id
from proxy.cli.worker import arguments
from proxy.jobs.model import WorkerId
from proxy.scaler.process import Command, ProcessProvider
from proxy.service.ports import WorkerExit

START_SECONDS = 60.0

CommandFor = Callable[[Proxy], Command]


@dataclass
class Provided:
    """A worker that the provider restarts whenever it exits."""

    proxy: Proxy
    provider: ProcessProvider
    lines: list[str] = field(default_factory=list)
    exits: list[WorkerExit] = field(default_factory=list)

    @property
    def alive(self) -> WorkerId:
        """Return the id of the worker process that runs now; none between two of them."""
        return next(iter(self.provider.workers()), WorkerId(""))

    async def is_ready(self) -> WorkerId:
        """Wait until the running worker can take a job; return its id."""
        await until(lambda: self._credit() > 0, START_SECONDS, "a worker is ready")
        return self.alive

    async def says(self, line: str) -> None:
        """Wait until a worker has printed this line."""
        await until(lambda: line in self.lines, 20.0, line)

    def _credit(self) -> int:
        member = self.proxy.parts.fleet.get(self.alive)
        return member.credit if member is not None else 0


def own(slots: int) -> CommandFor:
    """Return the command of a native worker with the scripted engine."""

    def command(proxy: Proxy) -> Command:
        def variables(_: int, worker: WorkerId) -> Mapping[str, str]:
            return ours.environment(
                connect=proxy.url, token=proxy.parts.token, id=worker, max_concurrency=slots
            )

        return Command(arguments([]), variables)

    return command


def stock(handler: str, **more: str) -> CommandFor:
    """Return the command of the stock SDK with a handler of `tests/handlers`."""
    argv: Sequence[str] = (python(".venv-sdk"), str(HANDLERS / handler))

    def command(proxy: Proxy) -> Command:
        def variables(_: int, worker: WorkerId) -> Mapping[str, str]:
            sdk = stock_worker.environment(
                proxy.url, "default", proxy.parts.token, worker, ping_millis=1000
            )
            return os.environ | sdk | {"PYTHONUNBUFFERED": "1"} | more

        return Command(argv, variables)

    return command


@asynccontextmanager
async def provided(proxy: Proxy, command: Command) -> AsyncIterator[Provided]:
    """Run a worker with the provider of this proxy."""
    lines: list[str] = []

    def say(worker: WorkerId, line: str) -> None:
        lines.append(line)

    provider = ProcessProvider(command, say, _nowhere, new_worker_id)
    running = Provided(proxy, provider, lines)
    proxy.parts.stuck.provided_by(provider)

    def exited(worker_exit: WorkerExit) -> None:
        running.exits.append(worker_exit)
        proxy.parts.worker_exited(worker_exit)

    async with provider.open(exited):
        provider.scale(1)
        yield running


def _nowhere(_: int) -> IO[bytes]:
    return Path(os.devnull).open("wb")
