"""Start and stop the processes of a comparison, each pinned to one core."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
# The server under test has a core for itself; all others share the second one.
SERVER_CORE = "0"
LOAD_CORE = "1"
START_SECONDS = 60.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.1
LOG_EXCERPT_BYTES = 4_000


class StartError(Exception):
    """A process ended, or was not ready in time. The text contains the end of its output."""


@asynccontextmanager
async def pinned(
    cores: str, *command: str, log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command on a core, or on several separated by commas, and stop it at the end.

    Its output goes to the file `log`.
    """
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *("taskset", "-c", cores, *command),
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def until_ready(
    process: asyncio.subprocess.Process,
    log: Path,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: object = None,
    seconds: float = START_SECONDS,
) -> None:
    """Wait until a request to `url` returns 200: a POST of `body`, or a GET without one.

    Raises StartError if the process ends, or if the time is over.
    """
    try:
        async with asyncio.timeout(seconds), aiohttp.ClientSession() as http:
            while not await _answers(http, url, headers, body):
                if process.returncode is not None:
                    raise StartError(f"The process ended with {process.returncode}: {tail(log)}")
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise StartError(f"{url} did not return 200 within {seconds} s: {tail(log)}") from None


async def _answers(
    http: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None, body: object
) -> bool:
    method = "GET" if body is None else "POST"
    with suppress(aiohttp.ClientError):
        async with http.request(method, url, headers=headers, json=body) as response:
            await response.read()
            return response.status == 200
    return False


def tail(log: Path) -> str:
    return log.read_bytes()[-LOG_EXCERPT_BYTES:].decode(errors="replace")


def descendants(pid: int) -> Iterator[int]:
    """Yield all processes that a process has started, directly or not."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield int(child)
            yield from descendants(int(child))


def tree_mb(pid: int) -> float:
    """Return the resident memory of a process and its descendants, in units of 1,000,000 bytes."""
    pages = 0
    for each in (pid, *descendants(pid)):
        pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
