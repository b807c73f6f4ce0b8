"""A proxy as a process of its own, whose memory and descriptors are its own too."""

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
    """A running proxy, from outside."""

    url: str
    command: Command

    @property
    def _proc(self) -> Path:
        return Path(f"/proc/{self.command.process.pid}")

    def memory(self) -> int:
        """The bytes that it holds now."""
        return self._status("VmRSS")

    def most_memory(self) -> int:
        """The most bytes that it has held since `forget_most`."""
        return self._status("VmHWM")

    def forget_most(self) -> None:
        """Begin anew with `most_memory`."""
        (self._proc / "clear_refs").write_text("5")

    def descriptors(self) -> int:
        """How many it has open."""
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
    """A proxy without workers; `settings` are `PROXY_*` variables in lower case.

    `most_descriptors`: how many the system lets it have, if that is less than it lets this process have.
    """
    python = _with_limit(folder, most_descriptors) if most_descriptors else sys.executable
    told = {f"PROXY_{name.upper()}": str(value) for name, value in settings.items()}
    where = ("--port", "0", "--data-dir", str(folder))
    async with command("proxy", *where, python=python, **told) as running:
        url = (await running.says(r"listens on (http://\S+)\.")).group(1)
        yield Alone(url, running)


def _with_limit(folder: Path, descriptors: int) -> str:
    """A Python that may open so many files."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nulimit -n {descriptors}\nexec {sys.executable} "$@"\n')
    script.chmod(0o700)
    return str(script)
