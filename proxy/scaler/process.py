"""A provider that runs workers as local processes.

Each worker runs in its own session and process group. A Ctrl-C in the terminal therefore reaches
only the proxy, which drains before it stops the workers; and killing the group also kills the child
processes of a worker, such as vLLM's engine.
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

# A worker's own drain (30 s) and the shutdown of its engine; after that the group is killed.
SHUTDOWN_TIMEOUT_SECONDS = 45.0
# The timeout for a stuck worker. It is short, because the worker's drain would wait for the run
# that does not end.
STUCK_SHUTDOWN_TIMEOUT_SECONDS = 3.0
OUTPUT_LINE_MAX_BYTES = 64 * 1024
# The exit statuses for wrong usage and wrong configuration: a restart would not help.
FINAL_STATUSES = (2, 78)


class OnLine(Protocol):
    """Receives every line that a worker writes, with control characters escaped."""

    def __call__(self, worker: WorkerId, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Command:
    """The command that starts a worker. `environment` receives the worker's number and id."""

    arguments: Sequence[str]
    environment: Callable[[int, WorkerId], Mapping[str, str]]


@dataclass(slots=True)
class RunningWorker:
    """The process of a worker. `is_ended` is True once its exit has been requested."""

    process: asyncio.subprocess.Process
    is_ended: bool = False

    def end(self) -> None:
        """Terminate the process, and kill its group after a short timeout."""
        if not self.is_ended:
            self.is_ended = True
            _signal_group(self.process.pid, signal.SIGTERM, only_leader=True)
            loop = asyncio.get_running_loop()
            loop.call_later(STUCK_SHUTDOWN_TIMEOUT_SECONDS, self.kill)

    def kill(self) -> None:
        """Kill the process group at once."""
        # After its exit, the process id may belong to another process.
        if self.process.returncode is None:
            _signal_group(self.process.pid, signal.SIGKILL)


class ProcessProvider:
    """A `Provider` of local processes. It restarts workers that die, with exponential back-off.

    `log_file` opens the log of the worker with a number, and `new_id` creates the id of each
    process.
    """

    def __init__(
        self,
        command: Command,
        on_line: OnLine,
        log_file: Callable[[int], IO[bytes]],
        new_id: Callable[[], WorkerId],
    ) -> None:
        self._command = command
        self._on_line = on_line
        self._log_file = log_file
        self._new_id = new_id
        self._keepers: list[asyncio.Task[None]] = []
        self._running: dict[WorkerId, RunningWorker] = {}
        self._on_exit: Callable[[WorkerExit], None] = lambda _: None

    @asynccontextmanager
    async def open(self, on_exit: Callable[[WorkerExit], None]) -> AsyncIterator[None]:
        self._on_exit = on_exit
        try:
            yield
        finally:
            keepers = self._keepers
            self._keepers = []
            await _cancel(keepers)

    def scale(self, desired: int) -> None:
        while len(self._keepers) < desired:
            number = len(self._keepers)
            self._keepers.append(asyncio.create_task(self._keep(number), name=f"worker {number}"))
        for surplus in self._keepers[desired:]:
            surplus.cancel()
        del self._keepers[desired:]

    def end(self, worker: WorkerId) -> bool:
        running = self._running.get(worker)
        if running is None:
            return False
        running.end()
        return True

    def kill(self) -> None:
        """Kill all workers and their child processes, for an exit without any cleanup."""
        for running in list(self._running.values()):
            running.kill()

    def workers(self) -> Sequence[WorkerId]:
        return list(self._running)

    async def _keep(self, number: int) -> None:
        """Keep one worker running, until cancelled or until it exits with a final status."""
        loop = asyncio.get_running_loop()
        deaths = 0
        with self._log_file(number) as log_file:
            while True:
                started = loop.time()
                worker = self._new_id()
                environment = self._command.environment(number, worker)
                status, planned = await self._run(worker, environment, log_file)
                self._on_exit(WorkerExit(worker, status, planned))
                if planned:
                    log.info("worker.ended", worker=worker, status=status)
                    continue
                if status in FINAL_STATUSES:
                    log.error("worker.misconfigured", worker=worker, status=status)
                    return
                deaths = deaths_in_row(deaths, loop.time() - started)
                log.warning(
                    "worker.died", worker=worker, status=status, again_in_seconds=pause(deaths)
                )
                await asyncio.sleep(pause(deaths))

    async def _run(
        self, worker: WorkerId, environment: Mapping[str, str], log_file: IO[bytes]
    ) -> tuple[int, bool]:
        """Run one process of a worker; return its exit status and True if its exit was requested.

        On cancellation, stop the process before the CancelledError is raised.
        """
        process = await asyncio.create_subprocess_exec(
            *self._command.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            limit=OUTPUT_LINE_MAX_BYTES,
        )
        running = RunningWorker(process)
        self._running[worker] = running
        reader = asyncio.create_task(self._read(worker, process, log_file))
        try:
            return await process.wait(), running.is_ended
        except asyncio.CancelledError:
            await _stop(process)
            self._on_exit(WorkerExit(worker, process.returncode or 0, planned=True))
            raise
        finally:
            del self._running[worker]
            # Kill the child processes that the worker may have left.
            _signal_group(process.pid, signal.SIGKILL)
            await reader

    async def _read(
        self, worker: WorkerId, process: asyncio.subprocess.Process, log_file: IO[bytes]
    ) -> None:
        stream = process.stdout
        while stream is not None:
            try:
                line = await stream.readline()
            except ValueError:
                # The line exceeds OUTPUT_LINE_MAX_BYTES; the part that was read is discarded.
                continue
            if not line:
                return
            text = escape_controls(line.decode(errors="replace").rstrip(), keep="\t")
            log_file.write(f"{text}\n".encode())
            log_file.flush()
            self._on_line(worker, text)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Terminate the worker, and kill its process group if it has not exited after the timeout."""
    _signal_group(process.pid, signal.SIGTERM, only_leader=True)
    try:
        async with asyncio.timeout(SHUTDOWN_TIMEOUT_SECONDS):
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


async def _cancel(keepers: Sequence[asyncio.Task[None]]) -> None:
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)
