"""Client libraries in processes of their own.

They print their version, read calls, and print the results.
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

STOP_SECONDS = 20.0
# A response is one line.
LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class Client:
    """A running client, and the version of its package."""

    process: Process
    version: str

    async def call(
        self,
        base_url: str,
        request: Mapping[str, Any],
        *,
        leaves: bool = False,
        helper: bool = False,
        seconds: float = 60.0,
    ) -> dict[str, Any]:
        """Call, and return the result.

        A client that disconnects reads only the first text of a stream. `helper`: it reads a
        response with `responses.stream`.
        """
        known = {name: value for name, value in request.items() if name != "fault"}
        extra = {name: value for name, value in request.items() if name == "fault"}
        asked = {
            "base_url": base_url,
            "request": known,
            "extra": extra,
            "leaves": leaves,
            "helper": helper,
            "timeout": seconds,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        return dict(json.loads(await _line(self.process)))


@asynccontextmanager
async def client(command: Sequence[str], variables: Mapping[str, str]) -> AsyncIterator[Client]:
    """Run a client with this command until the context ends."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **variables}, stdin=PIPE, stdout=PIPE, limit=LONGEST_LINE
    )
    try:
        yield Client(process, (await _line(process)).strip())
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            # Unread output must not block the process.
            await asyncio.wait_for(process.communicate(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.communicate()


async def _line(process: Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, "the client has broken down; what it wrote is above"
    return line.decode()
