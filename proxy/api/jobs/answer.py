"""An answer that may be large: a job's whole output has up to 64 MB, and its clients may be many and slow.

It is paid for like a body that comes in, leaves in parts as its client reads them, and is given up with a client that
reads nothing.
"""

import asyncio
from typing import Any

from fastapi import Response

from proxy.api.openai import ABORT
from proxy.service.budget import Budget

LARGE_BYTES = 64 * 1024  # what is smaller fits into the socket's own buffer, and is not worth counting
STALL_SECONDS = 60.0  # a reader that stands still for so long is cut


class JsonAnswer(Response):
    """A whole answer, as JSON; `BudgetError` if there is no room for it now."""

    media_type = "application/json"

    def __init__(self, content: bytes, budget: Budget) -> None:
        super().__init__(content)
        self._share = budget.share()
        if len(content) > LARGE_BYTES:
            self._share.grow(len(content))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._share:
            if not self._share.held:
                await super().__call__(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            body = memoryview(self.body)
            try:
                for start in range(0, len(body), LARGE_BYTES):
                    part, has_more = bytes(body[start : start + LARGE_BYTES]), start + LARGE_BYTES < len(body)
                    async with asyncio.timeout(STALL_SECONDS):
                        await send({"type": "http.response.body", "body": part, "more_body": has_more})
            except TimeoutError:
                scope["extensions"][ABORT]()
