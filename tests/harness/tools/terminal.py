"""A pseudo-terminal that runs a command, with the output and the keyboard of a user."""

import asyncio
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from harness.tools.waiting import until

ROOT = Path(__file__).parents[3]
STOP_SECONDS = 30.0
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """The output and the keyboard of a terminal."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._from = 0
        # The raw output, including escape sequences.
        self.seen = bytearray()
        asyncio.get_running_loop().add_reader(master, self._read)

    @property
    def text(self) -> str:
        """The output since the last text that `shows` waited for."""
        return _COLOURS.sub("", self.seen.decode(errors="replace"))[self._from :]

    def type(self, text: str) -> None:
        """Send keystrokes to the terminal."""
        os.write(self._master, text.encode())

    async def shows(self, text: str) -> None:
        """Wait until `text` is shown; the next call considers only the output after it."""
        await until(lambda: text in self.text, 20, f"{text!r} in {self.text!r}")
        self._from += self.text.index(text) + len(text)

    def _read(self) -> None:
        with suppress(OSError):
            self.seen += os.read(self._master, 65536)

    def close(self) -> None:
        """Close the terminal."""
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@asynccontextmanager
async def terminal(
    *arguments: str, **environment: str
) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    """Run `vllm-serverless ARGUMENTS` in a terminal, and stop it when the context ends."""
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy.cli", *arguments),
        cwd=ROOT, env=os.environ | {"TERM": "xterm"} | environment,
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    shown = Terminal(master)
    try:
        yield shown, process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        shown.close()
