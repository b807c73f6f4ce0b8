"""The proxy's dependencies on the operating system: clock, random bytes, disk and threads.

`app.compose` passes them on as one value. A simulation replaces this value, so that a run depends
on its seed only. The monotonic clock, timers, sockets and all other threads come from the event
loop, which a simulation replaces as a whole.
"""

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, get_native_id
from typing import BinaryIO

from proxy.jobs.model import Millis, RandomBytes
from proxy.service.clock import Clock
from proxy.store.sqlite.disk import Disk, LockedError, Space
from proxy.store.sqlite.writer import StartRunner

FOLDER_MODE = 0o700
FILE_MODE = 0o600

# A byte behind those that SQLite locks (512 bytes from 1 GB on).
PROBED_BYTE = 2 * 1024**3

# The nice value of work in the background: a tenth of a busy core. With less, the check of a large
# file would take minutes, in which SQLite's write-ahead log grows.
BACKGROUND_NICE = 10

# Bytes per write where a file cannot be allocated by a system call.
ALLOCATION_WRITE_BYTES = 1024 * 1024


class SystemClock:
    """A monotonic clock that shows wall time at the start, and the wall clock itself.

    Later changes of the system's clock do not affect deadlines.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> Millis:
        """Return the milliseconds since the epoch."""
        return Millis((time.monotonic_ns() + self._offset) // 1_000_000)

    def wall(self) -> Millis:
        """Return the milliseconds since the epoch that the system's clock shows."""
        return Millis(time.time_ns() // 1_000_000)


class SystemDisk:
    """Implementation of `Disk` by system calls."""

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def real_path(self, path: Path) -> Path:
        return Path(os.path.realpath(path)) if path.is_symlink() else path

    @contextmanager
    def hold(self, path: Path) -> Iterator["SystemFile"]:
        # Closing any descriptor of a file releases all `fcntl` locks that its process has on it,
        # and these are the locks of SQLite. So this is the only other descriptor of the file, and
        # it is open for longer than SQLite's. (A process has one store: a second attempt to open
        # it fails at the lock file, before this.) On Linux, `flock` and `fcntl` locks are
        # independent, so that this one does not affect SQLite or its tools.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            _lock_file(descriptor)
            yield SystemFile(path, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def read(self, path: Path) -> Iterator[BinaryIO]:
        with path.open("rb") as file:
            yield file

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE), "r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(lock.read().strip()) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def space(self, folder: Path) -> Space:
        system = os.statvfs(folder)
        return Space(system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def allocate(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, FILE_MODE)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                for _ in range(0, size, ALLOCATION_WRITE_BYTES):
                    os.write(descriptor, bytes(ALLOCATION_WRITE_BYTES))
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        path.unlink()

    def lower_priority(self) -> None:
        # Elsewhere, the number of a thread could be that of another process.
        if sys.platform == "linux":
            thread = get_native_id()
            nice = max(BACKGROUND_NICE, os.getpriority(os.PRIO_PROCESS, thread))
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, nice)


class SystemFile:
    """Implementation of `HeldFile` by system calls."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, start)

    def loss(self) -> str:
        try:
            found = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"{self._path} was deleted or moved"
        if os.path.samestat(found, os.fstat(self._descriptor)):
            return ""
        return f"{self._path} was replaced by another file"


def _lock_file(descriptor: int) -> None:
    """Lock a file with `flock`, if that leaves the `fcntl` locks of SQLite alone.

    On Linux the two kinds are independent. On macOS, and in network file systems, one blocks the
    other: there, only the lock file keeps other proxies away.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(_lock_holder(descriptor)) from None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, PROBED_BYTE)
    except OSError:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, PROBED_BYTE)


def _lock_holder(descriptor: int) -> str:
    """Return the id of the process that has locked a file with `flock`; empty if unknown."""
    file = os.fstat(descriptor)
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        # Only Linux has this file.
        return ""
    for line in lines:
        # Such as `1: FLOCK ADVISORY WRITE 4711 08:01:1310722 0 EOF`. The process is 0 if it is in
        # another container.
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5] == f"{device}:{file.st_ino}" and fields[4] != "0":
            return fields[4]
    return ""


class ThreadRunner:
    """Implementation of `Runner` that calls the step in a dedicated thread."""

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step
        self._wakes: SimpleQueue[None] = SimpleQueue()
        # A daemon thread, because otherwise the process would not end if the event loop crashes.
        self._thread = Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wakes.put(None)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            self._wakes.get()
            is_open = self._step()


@dataclass(frozen=True, slots=True)
class System:
    """The dependencies on the operating system; the real ones by default."""

    clock: Clock = field(default_factory=SystemClock)
    random_bytes: RandomBytes = os.urandom
    disk: Disk = field(default_factory=SystemDisk)
    start_runner: StartRunner = ThreadRunner
