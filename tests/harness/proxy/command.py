"""The command `vllm-serverless` as a child process."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness.tools.waiting import until

ROOT = Path(__file__).parents[3]
STOP_SECONDS = 30.0


@dataclass
class Command:
    """A running command and the lines of its output."""

    process: Process
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The output so far."""
        return "\n".join(self.lines)

    async def says(self, pattern: str, seconds: float = 20.0) -> re.Match[str]:
        """Wait until the output matches `pattern`.

        Fails after `seconds`, or if the process has exited.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        await until(
            lambda: bool(compiled.search(self.text)) or self.process.returncode is not None,
            seconds,
            pattern,
        )
        found = compiled.search(self.text)
        assert found is not None, self.text
        return found

    async def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal to the process, but not to its children; return its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ends(STOP_SECONDS)

    async def ends(self, seconds: float) -> int:
        """Wait until the process has exited; return its exit status."""
        return await asyncio.wait_for(self.process.wait(), seconds)


@asynccontextmanager
async def command(
    *arguments: str,
    python: str = sys.executable,
    through: Sequence[str] = (),
    cwd: Path = ROOT,
    **environment: str,
) -> AsyncIterator[Command]:
    """Run `vllm-serverless ARGUMENTS` with `python`, and stop it when the context ends.

    `through` is a prefix that executes the command, such as setpriv with its arguments. In another
    folder than the checkout, the package that is installed for `python` runs.
    """
    process = await asyncio.create_subprocess_exec(
        *(*through, python, "-m", "proxy.cli", *arguments),
        cwd=cwd, env=os.environ | environment, stdout=PIPE, stderr=STDOUT, start_new_session=True,
    )  # fmt: skip
    async with stopped_at_end(Command(process)) as running:
        yield running


@asynccontextmanager
async def stopped_at_end(running: Command) -> AsyncIterator[Command]:
    """Read the output of a command that leads a session, and stop it when the context ends."""
    reading = asyncio.create_task(_read(running))
    try:
        yield running
    finally:
        if running.process.returncode is None:
            await running.stop()
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        await asyncio.wait_for(reading, STOP_SECONDS)


async def _read(running: Command) -> None:
    assert running.process.stdout is not None
    async for line in running.process.stdout:
        running.lines.append(line.decode(errors="replace").rstrip())


def family(leaders: list[int]) -> list[int]:
    """Return the ids of all processes in the sessions of `leaders`, except zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) in leaders and state != "Z":
                    found.append(int(entry.name))
    return found


def processes(mark: str) -> list[int]:
    """Return the ids of all processes whose environment contains `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found
