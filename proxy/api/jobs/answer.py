"""An answer of the queue API."""

from typing import Any

from fastapi import Response

from proxy.access.body_budget import Budget
from proxy.api.sending import abort_of, paid, send_body


class JsonAnswer(Response):
    """A whole answer, as JSON; `BudgetError` if there is no room for it now."""

    media_type = "application/json"

    def __init__(self, content: bytes, budget: Budget) -> None:
        super().__init__(content)
        self._share = paid(content, budget)

    async def __call__(self, scope: Any, _: Any, send: Any) -> None:
        with self._share:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send_body(send, bytes(self.body), abort_of(scope))
