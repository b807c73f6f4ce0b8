"""The state of one simulation: loop, network, machines, trace and violations."""

import asyncio
import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import structlog

from sim.loop import SimLoop
from sim.machines import describe
from sim.network import Network
from sim.node import KilledError, Node

# In the messages and errors of uvicorn for requests that do not end in time at a shutdown.
SHUTDOWN_TIMEOUT = "timeout graceful shutdown exceeded"
# Log events that report a bug.
BUGS = ("loop.broke", "background.broke", "job.broke")


class World:
    """One simulation. Its trace has one line per event; equal seeds give equal traces.

    `violations`: the broken invariants, in the order of their discovery.
    """

    def __init__(self, seed: int, *, is_fifo: bool, logs: bool = False) -> None:
        self.seed = seed
        self.loop = SimLoop(self.draw("delays"), None if is_fifo else self.draw("scheduler"))
        self.lines: list[str] = []
        self.violations: list[str] = []
        self.nodes: list[Node] = []
        self.logs = logs
        self._is_over = False
        self.network = Network(self.loop, self.draw("network"), self.trace)
        # The (job, attempt) pairs that workers have received, and their receivers.
        self.has_faults = False
        self.may_time_out = False
        self.has_other_seal_key = False
        # Error responses that clients have received.
        self.errors = 0
        self.offers: dict[tuple[str, int], str] = {}
        # From then on, no fault delays a process, and the clocks have not changed for a while.
        self.calm_at = 0.0
        # The jobs whose webhooks have had their last try.
        self.given_up: dict[str, None] = {}

    def draw(self, purpose: str) -> Random:
        """Return the source of randomness for one purpose."""
        return Random(f"{self.seed} {purpose}")

    def trace(self, text: str) -> None:
        self.lines.append(f"{self.loop.time():.6f} {text}")

    def violate(self, text: str) -> None:
        """Note a broken invariant."""
        if self._is_over:
            return
        self.trace(f"VIOLATION {text}")
        self.violations.append(f"{self.loop.time():.3f} {text}")

    def frame(self, worker: str, direction: str, frame: Any) -> None:
        """Trace a frame at its worker, and check that a run starts once."""
        self.trace(f"frame {worker} {direction} {describe(frame)}")
        if direction == "<" and type(frame).__name__ == "Job":
            key = (frame.job, frame.attempt)
            if key in self.offers:
                self.violate(f"I3: attempt {key} started twice: {self.offers[key]}, {worker}")
            self.offers[key] = worker

    @contextmanager
    def running(self) -> Iterator[None]:
        """Capture logs and unhandled errors; close everything at the end."""
        handler = _LogHandler(self)
        old = structlog.get_config()
        structlog.configure(
            processors=[self._note_log],
            wrapper_class=structlog.make_filtering_bound_logger(
                logging.DEBUG if self.logs else logging.WARNING
            ),
            cache_logger_on_first_use=False,
        )
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(handler)
        is_propagating = logger.propagate
        logger.propagate = False
        was_enabled = gc.isenabled()
        # The collector would end suspended coroutines at moments that no seed reproduces.
        gc.disable()
        try:
            yield
        finally:
            self._end()
            logger.removeHandler(handler)
            logger.propagate = is_propagating
            structlog.configure(**old)
            if was_enabled:
                gc.enable()

    def _note_log(self, _logger: Any, level: str, event: dict[str, Any]) -> Any:
        name = event.pop("event")
        if self.logs:
            fields = " ".join(f"{key}={value}" for key, value in event.items())
            self.trace(f"log {level} {name} {fields}")
        if name == "delivery.gave_up":
            self.given_up[event["job"]] = None
        if name in BUGS or event.get("exc_info"):
            error = event.get("exc_info")
            if error is True:
                error = sys.exc_info()[1]
            self.violate(f"bug: log event {name}: {error!r}")
        raise structlog.DropEvent

    def _end(self) -> None:
        """Close all coroutines that are suspended, without running the loop."""
        for error in self.loop.errors:
            self.violate(f"bug: {error}")
        for task in self.loop.tasks:
            if (
                task.done()
                and task._log_traceback
                and not isinstance(task.exception(), KilledError)
            ):  # type: ignore[attr-defined]
                self.violate(f"bug: nothing handles the error of {task!r}")
        self._is_over = True
        self.network.close()
        # Code in `finally` that asks for a loop would create one.
        asyncio.set_event_loop(self.loop)
        for task in self.loop.tasks:
            if task.done():
                continue
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            with suppress(BaseException):
                coroutine.close()
        asyncio.set_event_loop(None)
        for node in self.nodes:
            if not node.is_dead:
                node.kill()
        self.loop.close()


class _LogHandler(logging.Handler):
    """Reports what uvicorn logs as an error."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if self._world.has_faults and SHUTDOWN_TIMEOUT in f"{record.getMessage()} {error}":
            # A fault delays the requests of a process that has received SIGTERM.
            return
        self._world.violate(f"bug: uvicorn: {record.getMessage()[:200]} {error!r}")
