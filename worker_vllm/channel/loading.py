"""Keep the connection to the proxy open while the engine loads.

Loading vLLM blocks the event loop for tens of seconds, longer than a lease. Until the engine is
ready, a thread with its own event loop holds the connection: a wrong address or token is reported
at once, the proxy receives the loading stages, and the lease is renewed. Then the worker's own
channel dials, the proxy replaces this connection by that one, and the thread ends.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from proxy.wire.flow import Outbox
from proxy.wire.frames import PROTOCOL, Credit, Frame, Hello, Log, ToWorker
from worker_vllm.channel.connection import Channel, ChannelTimeouts, OrphanedError
from worker_vllm.channel.dial import Dialler, DialRefusedError, Link

# Time that a start waits for the first response of the proxy, to fail before the engine is loaded.
FIRST_ATTEMPT_WAIT_SECONDS = 3.0
THREAD_JOIN_SECONDS = 5.0


class _Announcement:
    """The peer of a worker that cannot run jobs yet: it announces a name and zero credit."""

    def __init__(self, link: Link, engine: str) -> None:
        self._hello = Hello(PROTOCOL, link.worker, engine, instance=link.instance)

    def hello(self, _: Outbox) -> Hello:
        return self._hello

    def credit(self, _: Outbox) -> Credit:
        return Credit(0, 0)

    def receive(self, _: Outbox, frame: ToWorker) -> None:
        """Ignore the frame: without credit this worker has not received a job."""

    def sent(self, _: Outbox, frames: Sequence[Frame]) -> None:
        """Do nothing: frames are only counted for runs."""

    def disconnected(self, _: Outbox) -> None:
        """Do nothing: this worker has not started a run."""


class Loading:
    """The connection of a worker whose engine is not ready, from `start` to `close`.

    When the proxy rejects the worker, `failure` is set and the process receives a SIGINT, which
    ends the start.
    """

    def __init__(
        self, link: Link, engine: str, timeouts: ChannelTimeouts, dialler: Dialler
    ) -> None:
        self._link = link
        self._engine = engine
        self._timeouts = timeouts
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
        """True if the proxy has accepted this connection."""
        return self._channel is not None and self._channel.accepted

    def start(self) -> None:
        """Dial, and wait up to `FIRST_ATTEMPT_WAIT_SECONDS` for the outcome."""
        self._thread.start()
        self._tried.wait(FIRST_ATTEMPT_WAIT_SECONDS)

    def say(self, text: str) -> None:
        """Send a line to the proxy's operator. May be called from any thread."""
        if self._channel is not None:
            self._call_in_thread(self._channel.outbox.put, Log(text))

    def retire(self) -> None:
        """Stop dialling and accept being replaced: the worker's own channel is about to dial."""
        self._is_over = True
        if self._channel is not None:
            self._call_in_thread(self._channel.retire)

    def close(self) -> None:
        """End the connection and the thread."""
        self.retire()
        if self._stop is not None:
            self._call_in_thread(self._stop)
        self._thread.join(THREAD_JOIN_SECONDS)

    def _call_in_thread(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the thread's event loop; do nothing if the thread has ended."""
        if self._loop is not None:
            # The thread may end at any moment; then the loop is closed and raises a RuntimeError.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *arguments)

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
        peer = _Announcement(self._link, self._engine)
        self._channel = Channel(self._link, peer, self._timeouts, self._dialler)
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
