"""Workers as processes of this machine.

Each runs in a session and process group of its own: a Ctrl-C in the terminal reaches only the proxy, which then drains
before it ends them, and ending the group also ends what a worker has started (vLLM's engine is a process of its own).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import IO, Protocol

import structlog

from proxy.jobs.model import WorkerId
from proxy.scaler.backoff import deaths_in_row, pause
from proxy.service.ports import WorkerExit
from proxy.wire.escaping import escape_controls

log = structlog.get_logger()

STOP_SECONDS = 45.0  # a worker's own drain (30 s) and the engine's end; then the group is killed
END_SECONDS = (
    3.0  # for a worker that is given up: its drain would wait for the very run that does not end
)
LINE_BYTES = 64 * 1024
FINAL_STATUSES = (2, 78)  # wrong usage, wrong configuration: starting it again would change nothing


class Say(Protocol):
    """Receives every line that a worker writes, with control characters escaped."""

    def __call__(self, worker: WorkerId, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Command:
    """How a worker is started."""

    arguments: Sequence[str]
    environment: Callable[
        [int, WorkerId], Mapping[str, str]
    ]  # of the worker with this number and id


@dataclass(slots=True)
class Life:
    """A worker that is alive."""

    process: asyncio.subprocess.Process
    is_ended: bool = False  # it was given up: its end is planned, and no death

    def end(self) -> None:
        """End it, with little patience."""
        if not self.is_ended:
            self.is_ended = True
            _signal_group(self.process.pid, signal.SIGTERM, only_leader=True)
            asyncio.get_running_loop().call_later(END_SECONDS, self._kill)

    def _kill(self) -> None:
        if self.process.returncode is None:  # else its number may be another one's by now
            _signal_group(self.process.pid, signal.SIGKILL)


class ProcessProvider:
    """`Provider` over local processes; a worker that dies is started again after a growing pause."""

    def __init__(
        self,
        command: Command,
        say: Say,
        log_file: Callable[[int], IO[bytes]],
        new_id: Callable[[], WorkerId],
    ) -> None:
        self._command, self._say, self._log_file = command, say, log_file
        self._new_id = new_id
        self._keepers: list[asyncio.Task[None]] = []
        self._alive: dict[WorkerId, Life] = {}
        self._on_exit: Callable[[WorkerExit], None] = lambda _: None

    @asynccontextmanager
    async def open(self, on_exit: Callable[[WorkerExit], None]) -> AsyncIterator[None]:
        self._on_exit = on_exit
        try:
            yield
        finally:
            keepers, self._keepers = self._keepers, []
            await _end(keepers)

    def scale(self, desired: int) -> None:
        while len(self._keepers) < desired:
            number = len(self._keepers)
            self._keepers.append(asyncio.create_task(self._keep(number), name=f"worker {number}"))
        surplus, self._keepers = self._keepers[desired:], self._keepers[:desired]
        for keeper in surplus:
            keeper.cancel()

    def end(self, worker: WorkerId) -> bool:
        life = self._alive.get(worker)
        if life is not None:
            life.end()
        return life is not None

    def workers(self) -> Sequence[WorkerId]:
        return list(self._alive)

    async def _keep(self, number: int) -> None:
        """Keep one worker running, until cancelled or until it says that its configuration is wrong."""
        loop = asyncio.get_running_loop()
        deaths = 0
        with self._log_file(number) as kept:
            while True:
                began = loop.time()
                worker = self._new_id()
                status, planned = await self._run(
                    worker, self._command.environment(number, worker), kept
                )
                self._on_exit(WorkerExit(worker, status, planned))
                if planned:
                    log.info("worker.ended", worker=worker, status=status)
                    continue
                if status in FINAL_STATUSES:
                    log.error("worker.misconfigured", worker=worker, status=status)
                    return
                deaths = deaths_in_row(deaths, loop.time() - began)
                log.warning(
                    "worker.died", worker=worker, status=status, again_in_seconds=pause(deaths)
                )
                await asyncio.sleep(pause(deaths))

    async def _run(
        self, worker: WorkerId, environment: Mapping[str, str], kept: IO[bytes]
    ) -> tuple[int, bool]:
        """One life of a worker: its status, and whether its end was planned. Cancelled: ends the worker first."""
        process = await asyncio.create_subprocess_exec(
            *self._command.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            limit=LINE_BYTES,
        )
        life = self._alive[worker] = Life(process)
        reader = asyncio.create_task(self._read(worker, process, kept))
        try:
            return await process.wait(), life.is_ended
        except asyncio.CancelledError:
            await _stop(process)
            self._on_exit(WorkerExit(worker, process.returncode or 0, planned=True))
            raise
        finally:
            del self._alive[worker]
            _signal_group(process.pid, signal.SIGKILL)  # what it may have left behind
            await reader

    async def _read(
        self, worker: WorkerId, process: asyncio.subprocess.Process, kept: IO[bytes]
    ) -> None:
        stream = process.stdout
        while stream is not None:
            try:
                line = await stream.readline()
            except ValueError:  # a line longer than LINE_BYTES; what was read of it is dropped
                continue
            if not line:
                return
            text = escape_controls(line.decode(errors="replace").rstrip(), keep="\t")
            kept.write(f"{text}\n".encode())
            kept.flush()
            self._say(worker, text)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask the worker to end, and end its whole group when it does not."""
    _signal_group(process.pid, signal.SIGTERM, only_leader=True)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()


def _signal_group(pid: int, number: signal.Signals, *, only_leader: bool = False) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if only_leader:
            os.kill(pid, number)
        else:
            os.killpg(pid, number)


async def _end(keepers: Sequence[asyncio.Task[None]]) -> None:
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)
