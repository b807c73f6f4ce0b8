"""The `chat` command in a real terminal: answers, interruption and errors."""

import asyncio
from contextlib import AbstractAsyncContextManager

from harness.proxy.server import serving
from harness.proxy.shared import Line
from harness.tools.terminal import Terminal, terminal
from harness.tools.waiting import until


def chatting(
    *flags: str,
) -> AbstractAsyncContextManager[tuple[Terminal, asyncio.subprocess.Process]]:
    """Run the command in its own terminal."""
    return terminal("chat", *flags)


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


async def test_ctrl_c_stops_the_answer_but_not_the_chat(line: Line) -> None:
    async with serving() as slow:  # it has no workers
        async with chatting("--base-url", f"{slow.url}/v1", "--model", "m") as (terminal, process):
            await terminal.shows("> ")
            terminal.type("hello\n")
            await until(lambda: len(slow.parts.interactive) == 1)
            process.send_signal(2)
            await terminal.shows("stopped")
            await until(lambda: len(slow.parts.interactive) == 0, 1.0, "its job has ended")
            await terminal.shows("> ")
            process.send_signal(2)
            assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_the_chat_continues_after_an_error(line: Line) -> None:
    async with chatting("--base-url", f"{line.proxy.url}/v1", "--model", "nobody") as (terminal, _):
        await terminal.shows("> ")
        terminal.type("hello\n")
        await terminal.shows("The model `nobody` is not served")
        await terminal.shows("> ")


async def test_an_unreachable_server_is_reported() -> None:
    async with chatting("--base-url", "http://127.0.0.1:9/v1") as (terminal, process):
        await terminal.shows("http://127.0.0.1:9/v1: ")
        assert await asyncio.wait_for(process.wait(), 10) == 69
