"""End an engine's processes by force."""

import os
import signal
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def kill_children(root: int | None = None) -> None:
    """Kill every process below `root` (this process if not given), the deepest first."""
    for child in _children(os.getpid() if root is None else root):
        kill_children(child)
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    children: list[int] = []
    for tasks in PROC.glob(f"{parent}/task/*/children"):
        with suppress(OSError):
            children += [int(child) for child in tasks.read_text().split()]
    return children
