"""Sends complete responses, which may be large: the output of a job has up to 64 MB.

A large response is charged to a byte budget like a request body. It is sent in parts, as fast as
its client reads them; the connection of a client that stops reading is closed.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.access.body_budget import Budget, Share

# A response up to this size fits into the socket's buffer: it is sent in one part and not charged.
ANSWER_PART_BYTES = 64 * 1024
# A client that reads nothing for this long loses its connection.
WRITE_TIMEOUT_SECONDS = 60.0


def paid(body: bytes, answers: Budget) -> Share:
    """Charge a response to the budget; the caller gives the share back once the response is sent.

    Raises `BudgetError` if the budget is exhausted.
    """
    share = answers.share()
    if len(body) > ANSWER_PART_BYTES:
        share.grow(len(body))
    return share


async def send_body(send: Any, body: bytes, abort: Callable[[], None]) -> None:
    """Send the body of an ASGI response whose start was sent.

    Calls `abort` if the client reads nothing for `WRITE_TIMEOUT_SECONDS`.
    """
    if len(body) <= ANSWER_PART_BYTES:
        await send({"type": "http.response.body", "body": body})
        return
    view = memoryview(body)
    try:
        for start in range(0, len(view), ANSWER_PART_BYTES):
            end = start + ANSWER_PART_BYTES
            message = {
                "type": "http.response.body",
                "body": bytes(view[start:end]),
                "more_body": end < len(view),
            }
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                await send(message)
    except TimeoutError:
        abort()
