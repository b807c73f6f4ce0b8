"""An event loop with virtual time and a seeded order of its handles.

Nothing here waits: if no handle is ready, the time jumps to the next timer. The loop has neither
sockets nor threads. Connections come from a `Network`, and functions for executors are called on
the loop after a drawn delay.

Order: with a scheduler seed, the next step is chosen among the tasks that are ready before the
first other handle. Other handles (timers, deliveries of the network, ends of threads) keep their
order, because asyncio guarantees it; their variety comes from the drawn delays.
"""

import asyncio
import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from sim.node import NODE, KilledError

# Tasks among which the scheduler chooses.
MAX_CHOICES = 8
# Handles at one moment of virtual time; more of them are an endless loop.
MAX_HANDLES_PER_MOMENT = 200_000
# Mean seconds until an executor calls a function, and from its end to its result.
THREAD_SECONDS = 0.0005


class StuckError(Exception):
    """Nothing is scheduled, or time does not advance."""


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """A task whose hash is its number, so that sets of tasks have the same order in each run."""

    def __init__(self, coroutine: Any, *, number: int, **arguments: Any) -> None:
        # Before the base class hashes the task.
        self.number = number
        super().__init__(coroutine, **arguments)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(asyncio.BaseEventLoop):
    """See the module's docstring. `network` is set by the network itself."""

    network: Any = None

    def __init__(self, delays: Random, scheduler: Random | None = None) -> None:
        super().__init__()
        self._now = 0.0
        self._delays = delays
        self._scheduler = scheduler
        self._handles_now = 0
        # Keeps the tasks of killed nodes: to collect them would run their `finally`.
        self.tasks: list[SimTask] = []
        # Executors run one function at a time; this is the end of the last one.
        self._busy_until: dict[Any, float] = {}
        self.handles = 0
        self.thread_seconds = THREAD_SECONDS
        # The sockets that `create_connection` will be called with.
        self._addresses: dict[Any, tuple[str, int]] = {}
        # Called after each handle with its node.
        self.on_handle: Callable[[Any], None] | None = None
        # Exceptions that no task or callback has handled.
        self.errors: list[str] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_error)

    def time(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        """Let time pass before the next handle runs, as if the last one had taken this time."""
        self._now += seconds

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Call `func` on the loop, some time later, and set its result some time after that."""
        future = self.create_future()

        def call() -> None:
            result, error = None, None
            try:
                result = func(*args)
            except Exception as raised:  # noqa: BLE001 - passed on, as executors do
                error = raised
            self.call_later(self.delay(), finish, result, error)

        def finish(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        due = self._now + self.delay()
        if executor is not None:
            due = max(due, self._busy_until.get(executor, 0.0))
            self._busy_until[executor] = due
        self.call_at(due, call)
        return future

    def delay(self) -> float:
        """Draw the delay of a thread."""
        return self._delays.expovariate(1 / self.thread_seconds)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], *, sock: Any, **_: Any
    ) -> Any:
        return self.network.listen(protocol_factory, sock)

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], Any],
        host: str = "",
        port: int = 0,
        *,
        sock: Any = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        address = (host, port) if sock is None else self._addresses.pop(sock)
        return await self.network.connect(protocol_factory, address)

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Note the address of a real socket, which is used for nothing else."""
        self._addresses[sock] = address
        sock.close()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's own
        """Do nothing: no executor has threads."""

    def _run_once(self) -> None:
        """Run one handle, after advancing the time if none is ready."""
        scheduled = self._scheduled  # type: ignore[attr-defined]
        ready = self._ready  # type: ignore[attr-defined]
        while True:
            while scheduled and (scheduled[0]._cancelled or scheduled[0]._when <= self._now):
                timer = heapq.heappop(scheduled)
                timer._scheduled = False
                if not timer._cancelled:
                    ready.append(timer)
            if ready:
                break
            if not scheduled:
                raise StuckError(f"nothing is scheduled at {self._now:.3f} s")
            self._now = scheduled[0]._when
            self._handles_now = 0
        handle = self._next(ready)
        if handle._cancelled:
            return
        node = handle._context.get(NODE)
        if node is not None and node.is_dead:
            return
        if node is not None and node.is_stopped:
            node.held.append(handle)
            return
        self.handles += 1
        self._handles_now += 1
        if self._handles_now > MAX_HANDLES_PER_MOMENT:
            raise StuckError(f"an endless loop at {self._now:.3f} s: {handle!r}")
        handle._run()
        if self.on_handle is not None:
            self.on_handle(node)

    def _next(self, ready: Any) -> Any:
        """Remove and return the next handle."""
        if self._scheduler is None or len(ready) == 1:
            return ready.popleft()
        choices = 0
        for handle in ready:
            if choices == MAX_CHOICES or not _is_step(handle):
                break
            choices += 1
        if choices < 2:
            return ready.popleft()
        index = self._scheduler.randrange(choices)
        handle = ready[index]
        del ready[index]
        return handle

    def resume(self, node: Any) -> None:
        """Let a stopped node continue with the handles that it has missed."""
        node.is_stopped = False
        self._ready.extend(node.held)  # type: ignore[attr-defined]
        node.held.clear()

    def _timer_handle_cancelled(self, handle: Any) -> None:
        """Do nothing: cancelled timers are removed when they are due."""

    def _make_task(self, _loop: Any, coroutine: Any, **arguments: Any) -> SimTask:
        task = SimTask(coroutine, loop=self, number=len(self.tasks), **arguments)
        self.tasks.append(task)
        return task

    def _note_error(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, KilledError):
            return
        self.errors.append(f"{self._now:.3f} {context['message']}: {error!r}")


def _is_step(handle: Any) -> bool:
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)
