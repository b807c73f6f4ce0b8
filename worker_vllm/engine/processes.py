"""Pin and kill the processes that an engine has started."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def kill_children(root: int | None = None) -> None:
    """Kill every descendant of the process `root` (default: this process), children first."""
    for child in reversed(list(_descendants(os.getpid() if root is None else root))):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)


def pin_children(cpu: int) -> None:
    """Restrict every thread of every descendant of this process to one CPU."""
    for child in _descendants(os.getpid()):
        for task in PROC.glob(f"{child}/task/*"):
            with suppress(ProcessLookupError, PermissionError):
                os.sched_setaffinity(int(task.name), {cpu})


def _descendants(parent: int) -> Iterator[int]:
    """Yield the ids of all descendants of a process, parents before their children."""
    for tasks in PROC.glob(f"{parent}/task/*/children"):
        with suppress(OSError):
            for child in tasks.read_text().split():
                yield int(child)
                yield from _descendants(int(child))
