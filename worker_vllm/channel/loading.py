"""Keeps the proxy informed while the engine loads.

Loading vLLM blocks the event loop for tens of seconds, longer than a lease. So until the engine is ready a thread with
a loop of its own holds the connection: a wrong address or token is told at once, the proxy sees the stages, and the
lease is renewed. Then the worker's own channel dials, the proxy replaces this connection by that one, and the thread
ends.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from proxy.wire.frames import PROTOCOL, Credit, Frame, Hello, Log, ToWorker
from proxy.wire.outbox import Outbox
from worker_vllm.channel.connection import Channel, ChannelTimeouts, OrphanedError
from worker_vllm.channel.dial import Dialler, DialRefusedError, Link

FIRST_TRY_SECONDS = (
    3.0  # how long a start waits for the first answer of the proxy, to fail early rather than late
)
JOIN_SECONDS = 5.0


class _Announcement:
    """What a worker says while it cannot work: its name, and no credit. See `Peer`."""

    def __init__(self, worker: str, engine: str) -> None:
        self._hello = Hello(PROTOCOL, worker, engine)

    def hello(self, _: Outbox) -> Hello:
        return self._hello

    def credit(self, _: Outbox) -> Credit:
        return Credit(0, 0)

    def receive(self, _: Outbox, frame: ToWorker) -> None:
        """Nothing is owed: there was no credit."""

    def sent(self, _: Outbox, frames: Sequence[Frame]) -> None:
        """Nothing to keep count of."""

    def disconnected(self, _: Outbox) -> None:
        """Nothing to give up."""


class Loading:
    """The connection of a worker whose engine is not ready, from `start` to `close`.

    When the proxy refuses the worker, `failure` says so and the process gets a SIGINT, which ends the start.
    """

    def __init__(
        self, link: Link, engine: str, patience: ChannelTimeouts, dialler: Dialler
    ) -> None:
        self._link, self._engine, self._patience = link, engine, patience
        self._dialler = dialler
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._main, name="loading", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: Channel | None = None
        self._stop: Callable[[], object] | None = None
        self._is_over = False
        self.failure: DialRefusedError | OrphanedError | None = None

    @property
    def was_accepted(self) -> bool:
        """Whether the proxy has kept this connection."""
        return self._channel is not None and self._channel.accepted

    def start(self) -> None:
        """Dial, and give the proxy a moment to answer."""
        self._thread.start()
        self._tried.wait(FIRST_TRY_SECONDS)

    def say(self, text: str) -> None:
        """Tell the person who runs the proxy what is going on. From any thread."""
        if self._channel is not None:
            self._ask(self._channel.outbox.put, Log(text))

    def retire(self) -> None:
        """The worker's own channel is about to dial: neither dial again nor mind being replaced."""
        self._is_over = True
        if self._channel is not None:
            self._ask(self._channel.retire)

    def close(self) -> None:
        """End the connection and the thread."""
        self.retire()
        if self._stop is not None:
            self._ask(self._stop)
        self._thread.join(JOIN_SECONDS)

    def _ask(self, what: Callable[..., object], *arguments: object) -> None:
        """Have the thread's loop do something; nothing if the thread has ended, which it may just now."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(what, *arguments)

    def _main(self) -> None:
        try:
            asyncio.run(self._keep())
        except (DialRefusedError, OrphanedError) as failure:
            if not self._is_over:
                self.failure = failure
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            self._tried.set()

    async def _keep(self) -> None:
        peer = _Announcement(self._link.worker, self._engine)
        self._channel = Channel(self._link, peer, self._patience, self._dialler)
        self._loop = asyncio.get_running_loop()
        running = asyncio.create_task(self._channel.run())
        self._stop = running.cancel
        trying = asyncio.create_task(self._channel.tried.wait())
        await asyncio.wait({running, trying}, return_when=asyncio.FIRST_COMPLETED)
        trying.cancel()
        if not running.done():
            self._tried.set()
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()
