"""A proxy in a process of its own that measures the turns of its event loop and its transactions.

`python -m harness.proxy.measured` runs it, with the settings in `PROXY_*` variables. For each
SIGUSR1 it prints the figures since the one before. Its event loop is asyncio's own, because uvloop
does not show where a turn begins.
"""

import asyncio
import json
import os
import selectors
import signal
import sqlite3
import struct
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness.proxy.command import ROOT, Command, stopped_at_end
from harness.proxy.process import Alone
from proxy.app import compose
from proxy.serving import listen, running
from proxy.settings import Settings
from proxy.store.sqlite.store import SqliteStore
from proxy.system import System, ThreadRunner

QUANTILE = 0.999
LAST_FRAME_OFFSET = 16


class Figures(NamedTuple):
    """Times in seconds. `rows`: the most rows that one transaction has changed; `bytes`: the most
    bytes of pages that one has written.
    """

    turns: int
    turn_p999: float
    longest_turn: float
    transactions: int
    longest_transaction: float
    rows: int
    bytes: int


class MeasuredSelector(selectors.DefaultSelector):
    """A selector that measures the time between two of its calls: a turn of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[float] = []
        self._woken: float | None = None

    def select(self, timeout: float | None = None) -> Any:
        if self._woken is not None:
            self.turns.append(time.perf_counter() - self._woken)
        ready = super().select(timeout)
        self._woken = time.perf_counter()
        return ready


class LogSize:
    """The size of the write-ahead log in bytes of pages, as its index says (wal.c: WalIndexHdr)."""

    def __init__(self, db: sqlite3.Connection) -> None:
        [[_, _, path], *_] = db.execute("PRAGMA database_list").fetchall()
        [[self._page_size]] = db.execute("PRAGMA page_size").fetchall()
        # Never closed: that would release SQLite's own locks on the file.
        self._index = os.open(f"{path}-shm", os.O_RDONLY)

    def read(self) -> int:
        """Return the size after the last commit."""
        [frames] = struct.unpack("=I", os.pread(self._index, 4, LAST_FRAME_OFFSET))
        return int(frames) * int(self._page_size)


@dataclass
class Transactions:
    """Measures the steps of the SQLite writer: one transaction each."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    store: SqliteStore | None = None
    log: "LogSize | None" = None

    def start_runner(self, step: Callable[[], bool]) -> ThreadRunner:
        """Return the runner of the writer (see `System.start_runner`)."""
        return ThreadRunner(lambda: self._measured(step))

    def _measured(self, step: Callable[[], bool]) -> bool:
        assert self.store is not None
        db = self.store._database._writer._db
        if self.log is None:
            self.log = LogSize(db)
        before = db.total_changes
        size_before = self.log.read()
        began = time.perf_counter()
        has_more = step()
        self.seconds.append(time.perf_counter() - began)
        self.rows.append(db.total_changes - before)
        size = self.log.read()
        # A checkpoint lets the log begin again.
        self.bytes.append(size - size_before if size >= size_before else size)
        return has_more


@dataclass(frozen=True)
class Measured(Alone):
    """A running proxy that is measured."""

    asked: list[int] = field(default_factory=list)

    async def figures(self) -> Figures:
        """Return the figures since the call before."""
        self.asked.append(1)
        self.command.process.send_signal(signal.SIGUSR1)
        found = await self.command.says(rf"^figures {len(self.asked)} (.*)$")
        return Figures(*json.loads(found.group(1)))


@asynccontextmanager
async def measured(folder: Path, **settings: Any) -> AsyncIterator[Measured]:
    """Run a proxy without workers; `settings` are `PROXY_*` variables in lower case."""
    variables = {f"PROXY_{name.upper()}": str(value) for name, value in settings.items()}
    variables |= {"PROXY_PORT": "0", "PROXY_DATA_DIR": str(folder)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "harness.proxy.measured"),
        cwd=ROOT / "tests", env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | variables,
        stdout=PIPE, stderr=STDOUT, start_new_session=True,
    )  # fmt: skip
    async with stopped_at_end(Command(process)) as running_command:
        url = (await running_command.says(r"^listens on (\S+)$")).group(1)
        yield Measured(url, running_command)


async def _serve(selector: MeasuredSelector) -> None:
    settings = Settings()
    path = settings.store_file()
    assert path is not None
    transactions = Transactions()
    system = System(start_runner=transactions.start_runner)
    transactions.store = SqliteStore(path, system.disk, system.start_runner)
    listener = listen(settings)
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    number = 0

    def tell() -> None:
        nonlocal number
        number += 1
        turns = sorted(selector.turns)
        figures = Figures(
            turns=len(turns),
            turn_p999=turns[int(len(turns) * QUANTILE)],
            longest_turn=turns[-1],
            transactions=len(transactions.rows),
            longest_transaction=max(transactions.seconds, default=0.0),
            rows=max(transactions.rows, default=0),
            bytes=max(transactions.bytes, default=0),
        )
        print("figures", number, json.dumps(figures), flush=True)
        for values in (selector.turns, transactions.seconds, transactions.rows, transactions.bytes):
            values.clear()

    loop.add_signal_handler(signal.SIGUSR1, tell)
    for stop in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop, end.set)
    async with running(compose(settings, system, transactions.store), listener):
        print(f"listens on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await end.wait()


if __name__ == "__main__":
    found = MeasuredSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(found)) as runner:
        runner.run(_serve(found))
