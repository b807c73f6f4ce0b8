"""Coding agents of others, as processes that know nothing of this machine but the proxy."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.agents.outside import Outside
from harness.proxy.command import Command, stopped_at_end

KEY = "none"
# Of the environment of a run, only these variables are passed on.
KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True)
class Invocation:
    """A command line, and its variables in addition to those that every agent gets."""

    argv: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


class Agent(Protocol):
    """One program. `invocation` writes its configuration into `home`.

    `silence` is the number of seconds without data after which the program gives a call up, if its
    default is to be replaced.
    """

    def command(self) -> list[str]:
        """Return the command without arguments; skip the test if the program is missing."""

    def invocation(
        self, home: Path, base_url: str, prompt: str, silence: float | None
    ) -> Invocation:
        """Return the command for one turn that is not interactive."""


@dataclass
class Turn:
    """A running turn of an agent."""

    command: Command

    @property
    def text(self) -> str:
        """The output so far."""
        return self.command.text

    async def ends(self, seconds: float = 60.0) -> int:
        """Wait until the program has exited, and return its status."""
        return await self.command.ends(seconds)

    def interrupt(self) -> None:
        """Press Ctrl-C: the signal reaches all processes of the program."""
        os.killpg(self.command.process.pid, signal.SIGINT)


@asynccontextmanager
async def turn(
    agent: Agent, home: Path, outside: Outside, base_url: str, prompt: str, *,
    silence: float | None = None,
) -> AsyncIterator[Turn]:  # fmt: skip
    """Run one turn of an agent in the folder `home/work`, and kill it when the context ends."""
    folder = home / "work"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = agent.invocation(home, base_url, prompt, silence)
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    own = {"HOME": str(home), "TERM": "dumb", **outside.variables(), **wanted.variables}
    process = await asyncio.create_subprocess_exec(
        *wanted.argv, cwd=folder, env=kept | own, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
        start_new_session=True,
    )  # fmt: skip
    async with stopped_at_end(Command(process)) as command:
        yield Turn(command)


def scripted(**script: Any) -> str:
    """Return a prompt with a script for the scripted engine."""
    return f"Do it. <script>{json.dumps(script)}</script>"
