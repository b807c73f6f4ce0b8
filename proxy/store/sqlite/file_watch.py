"""Notices that the database file can no longer be used.

SQLite continues to write to a file that was deleted or replaced, and all of that is lost when the
process ends. So the file is checked after each commit, before the commit is acknowledged, and once
a second for a store that is not written to.
"""

import asyncio
from contextlib import suppress

import structlog

from proxy.store.base import StoreGoneError
from proxy.store.sqlite.disk import HeldFile

log = structlog.get_logger()

CHECK_SECONDS = 1.0


class FileWatch:
    """The state of the file: usable, or gone for good. `check` and `give_up` may be called in any
    thread.
    """

    _file: HeldFile
    _loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        self._is_gone = asyncio.Event()
        self._is_closing = asyncio.Event()
        self.gone = ""
        """The reason why the file cannot be used; empty while it can."""

    def begin(self, file: HeldFile) -> None:
        """Watch a file that was opened."""
        self._file = file
        self._loop = asyncio.get_running_loop()

    def require(self) -> None:
        """Raise `StoreGoneError` if the file is known to be gone."""
        if self.gone:
            raise StoreGoneError(self.gone)

    def check(self) -> None:
        """Raise `StoreGoneError` if the file was deleted or replaced, or is known to be gone."""
        self.require()
        # An error of the disk says nothing about the file.
        with suppress(OSError):
            if reason := self._file.loss():
                self.give_up(reason)
        self.require()

    def give_up(self, reason: str) -> None:
        """Note that the file cannot be used any longer."""
        if not self.gone:
            self.gone = reason
            log.error("store.gone", why=reason)
            self._loop.call_soon_threadsafe(self._is_gone.set)

    async def until_gone(self) -> str:
        """Wait until the file is gone; return the reason."""
        await self._is_gone.wait()
        return self.gone

    async def serve(self) -> None:
        """Check the file once a second, until it is gone or `close` is called.

        Must have returned before the file is closed.
        """
        with suppress(StoreGoneError):
            while not self._is_closing.is_set():
                # In a thread, because a disk that hangs must not block the event loop.
                await asyncio.to_thread(self.check)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._is_closing.wait()

    def close(self) -> None:
        """Let `serve` return."""
        self._is_closing.set()
