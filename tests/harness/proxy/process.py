"""A proxy in a process of its own, to measure its memory and descriptors."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.proxy.command import Command, command

KB = 1024
MB = 1024 * KB


@dataclass(frozen=True)
class Alone:
    """A running proxy."""

    url: str
    command: Command

    @property
    def _proc(self) -> Path:
        return Path(f"/proc/{self.command.process.pid}")

    def memory(self) -> int:
        """The current memory in bytes."""
        return self._status("VmRSS")

    def most_memory(self) -> int:
        """The peak memory in bytes since `forget_most`."""
        return self._status("VmHWM")

    def forget_most(self) -> None:
        """Reset `most_memory`."""
        (self._proc / "clear_refs").write_text("5")

    def cpu_seconds(self) -> float:
        """The processor time of the process so far."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """The number of open descriptors."""
        return len(list((self._proc / "fd").iterdir()))

    def _status(self, name: str) -> int:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * KB
        raise LookupError(name)


@asynccontextmanager
async def alone(
    folder: Path, *, most_descriptors: int = 0, **settings: Any
) -> AsyncIterator[Alone]:
    """Run a proxy without workers; `settings` are `PROXY_*` variables in lower case.

    `most_descriptors` is the limit of open files, if it is lower than the limit of this process.
    """
    python = _with_limit(folder, most_descriptors) if most_descriptors else sys.executable
    variables = {f"PROXY_{name.upper()}": str(value) for name, value in settings.items()}
    where = ("--port", "0", "--data-dir", str(folder))
    async with command("proxy", *where, python=python, **variables) as running:
        url = (await running.says(r"listens on (http://\S+)\.")).group(1)
        yield Alone(url, running)


def _with_limit(folder: Path, descriptors: int) -> str:
    """Return a Python that may open this number of files."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nulimit -n {descriptors}\nexec {sys.executable} "$@"\n')
    script.chmod(0o700)
    return str(script)
