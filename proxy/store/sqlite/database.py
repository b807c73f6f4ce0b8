"""The open file: one runner that writes, and one thread that reads what is committed."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import TypeVar

from proxy.store.sqlite import file
from proxy.store.sqlite.disk import Disk
from proxy.store.sqlite.room import Room
from proxy.store.sqlite.writer import StartRunner, Writer, nothing

T = TypeVar("T")


class Database:
    """What `SqliteStore` reads and writes through."""

    _writer: Writer
    _reader: sqlite3.Connection
    _pool: ThreadPoolExecutor

    def __init__(self, path: Path, disk: Disk, start_runner: StartRunner) -> None:
        self._path = path
        self._disk = disk
        self._start_runner = start_runner
        self.room = Room(Path(f"{path}.ballast"), disk)

    @property
    def commits(self) -> int:
        """How many transactions were committed since it was opened."""
        return self._writer.commits

    @asynccontextmanager
    async def open(self, load: Callable[[sqlite3.Connection], None]) -> AsyncIterator[None]:
        """Open the file, `load` from it, and start to write. Leaving writes what waits and closes everything."""
        with ExitStack() as stack:

            def begin() -> sqlite3.Connection:
                db = stack.enter_context(file.opened(self._path, self._disk))
                load(db)
                return db

            db = await asyncio.to_thread(begin)  # a big file is looked at for a while
            self._reader = stack.enter_context(closing(file.reader(self._path)))
            self._pool = stack.enter_context(ThreadPoolExecutor(1, "store reader"))
            self._writer = Writer(db, self.room, self._start_runner)
            self._writer.start()
            try:
                yield
            finally:
                await self._writer.close()

    async def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """What this finds."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, look, self._reader)

    async def write(
        self,
        run: Callable[[sqlite3.Connection], T],
        apply: Callable[[T], None] = nothing,
        undo: Callable[[], None] = nothing,
        size: int = 0,
    ) -> T:
        """What this gives once it is on the disk; see `Writer.do`."""
        return await self._writer.do(run, apply, undo, size)
