"""`chat` in a real terminal: it answers, stops when told to, and goes on."""

import asyncio
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from harness.line import Line
from harness.proxy import serving
from harness.waiting import until

ROOT = Path(__file__).parents[2]
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """What a person sees, and types."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._seen = bytearray()
        self._from = 0
        asyncio.get_running_loop().add_reader(master, self._read)

    @property
    def text(self) -> str:
        """What came since the last thing that was waited for."""
        return _COLOURS.sub("", self._seen.decode(errors="replace"))[self._from :]

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    async def shows(self, text: str) -> None:
        """Wait until this is on the screen; what comes after it is what is waited for next."""
        await until(lambda: text in self.text, 20, f"{text!r} in {self.text!r}")
        self._from += self.text.index(text) + len(text)

    def _read(self) -> None:
        with suppress(OSError):
            self._seen += os.read(self._master, 65536)

    def close(self) -> None:
        """No more."""
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@asynccontextmanager
async def chatting(*flags: str) -> AsyncIterator[tuple[Terminal, asyncio.subprocess.Process]]:
    """The command in a terminal of its own."""
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy.cli", "chat", *flags),
        cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    terminal = Terminal(master)
    try:
        yield terminal, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        terminal.close()


async def test_a_conversation(line: Line) -> None:
    async with chatting("--base-url", f"{line.proxy.url}/v1") as (terminal, process):
        await terminal.shows("scripted at")
        await terminal.shows("> ")
        terminal.type("hey\n")
        await terminal.shows("hey 15")
        await terminal.shows("16 tokens")
        await terminal.shows("> ")
        terminal.type("/exit\n")
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_ctrl_c_stops_the_answer_and_not_the_chat(line: Line) -> None:
    async with serving() as slow:  # nobody will ever answer here
        async with chatting("--base-url", f"{slow.url}/v1", "--model", "m") as (terminal, process):
            await terminal.shows("> ")
            terminal.type("hello\n")
            await until(lambda: len(slow.parts.output) == 1)
            process.send_signal(2)
            await terminal.shows("stopped")
            await until(lambda: len(slow.parts.output) == 0, 1.0, "its job has ended")
            await terminal.shows("> ")
            process.send_signal(2)
            assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_an_error_is_a_sentence_and_the_chat_goes_on(line: Line) -> None:
    async with chatting("--base-url", f"{line.proxy.url}/v1", "--model", "nobody") as (terminal, _):
        await terminal.shows("> ")
        terminal.type("hello\n")
        await terminal.shows("The model `nobody` is not served")
        await terminal.shows("> ")


async def test_a_server_that_is_not_there_is_told() -> None:
    async with chatting("--base-url", "http://127.0.0.1:9/v1") as (terminal, process):
        await terminal.shows("http://127.0.0.1:9/v1: ")
        assert await asyncio.wait_for(process.wait(), 10) == 69
