"""Sending a whole answer that may be large: a job's output has up to 64 MB, as has an engine's, and clients are slow.

It is paid for like a body that comes in, leaves in parts as its client reads them, and is given up with a client that
reads nothing.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.access.body_budget import Budget, Share

ABORT = "vllm_serverless.abort"  # the ASGI extension that cuts the connection of a request


def abort_of(scope: Any) -> Callable[[], None]:
    """What cuts the connection of a request; nothing, on a server that has no such means."""
    found: Callable[[], None] = scope.get("extensions", {}).get(ABORT, _nothing)
    return found


def _nothing() -> None:
    pass


LARGE_BYTES = (
    64 * 1024
)  # what is smaller fits into the socket's own buffer, and is not worth counting
STALL_SECONDS = 60.0  # a reader that stands still for so long is cut


def paid(body: bytes, answers: Budget) -> Share:
    """What an answer holds of the budget, to be given back once it has left; `BudgetError` if there is no room now."""
    share = answers.share()
    if len(body) > LARGE_BYTES:
        share.grow(len(body))
    return share


async def send_body(send: Any, body: bytes, abort: Callable[[], None]) -> None:
    """Send the body of an ASGI answer whose head is out; `abort` cuts the connection of one that stands still."""
    if len(body) <= LARGE_BYTES:
        await send({"type": "http.response.body", "body": body})
        return
    view = memoryview(body)
    try:
        for start in range(0, len(view), LARGE_BYTES):
            part, has_more = (
                bytes(view[start : start + LARGE_BYTES]),
                start + LARGE_BYTES < len(view),
            )
            async with asyncio.timeout(STALL_SECONDS):
                await send({"type": "http.response.body", "body": part, "more_body": has_more})
    except TimeoutError:
        abort()
