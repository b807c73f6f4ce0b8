"""Every error this proxy itself answers with, in one table; `api.dialects` puts them into words.

`should_retry` goes out as `x-should-retry`, which both OpenAI SDKs obey: without it they post every 408, 409, 429 and
5xx again, twice, so a job that ran too long would run three times.
"""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.access.body_budget import BudgetError
from proxy.access.rate_limits import LimitedError, RateLimitStatus
from proxy.service.admission import DrainingError, QueueFullError
from proxy.service.durable import NotRetriableError
from proxy.store.base import StoreFullError

REQUEST = "invalid_request_error"
SERVER = "server_error"


class Row(NamedTuple):
    """How an error code is told: HTTP status, OpenAI's `type`, and whether and when to try again."""

    status: int
    type: str
    should_retry: bool | None = None
    retry_after: int | None = (
        None  # seconds; at most 60, above that the Python SDK does not retry at all
    )


ERRORS: dict[str, Row] = {
    "bad_request": Row(400, REQUEST),
    "invalid_json": Row(400, REQUEST),
    "invalid_body": Row(400, REQUEST),
    "invalid_api_key": Row(401, REQUEST),
    "host_not_allowed": Row(403, REQUEST),
    "foreign_origin": Row(403, REQUEST),
    "not_found": Row(404, REQUEST),
    "endpoint_not_found": Row(404, REQUEST),
    "model_not_found": Row(404, REQUEST),
    "job_not_found": Row(404, REQUEST),
    "not_retriable": Row(409, REQUEST, should_retry=False),
    "method_not_allowed": Row(405, REQUEST),
    "request_timeout": Row(408, REQUEST),
    "request_too_large": Row(413, REQUEST),
    "head_too_large": Row(431, REQUEST),
    "unsupported_media_type": Row(415, REQUEST),
    "rate_limited": Row(429, "rate_limit_exceeded"),
    "queue_full": Row(429, "rate_limit_exceeded", retry_after=5),
    "job_cancelled": Row(409, SERVER, should_retry=False),
    "engine_error": Row(500, SERVER, should_retry=False),
    "internal_error": Row(500, SERVER, should_retry=False),
    "worker_lost": Row(502, SERVER, should_retry=False),  # it has run
    "gave_up": Row(502, SERVER, should_retry=False),
    "answer_too_large": Row(502, SERVER, should_retry=False),
    "no_workers": Row(503, SERVER, should_retry=True, retry_after=30),
    "store_full": Row(503, SERVER, should_retry=True, retry_after=30),
    "overloaded": Row(503, SERVER, should_retry=True, retry_after=5),
    "too_many_connections": Row(503, SERVER, should_retry=True, retry_after=5),
    "server_draining": Row(503, SERVER, should_retry=True, retry_after=5),
    "execution_timeout": Row(504, SERVER, should_retry=False),
    "expired": Row(504, SERVER, should_retry=False),
}


class ApiError(Exception):
    """An answer that is an error: a code of the table, a sentence that says what to do, the field that is wrong."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        allow: str | None = None,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.allow, self.more = (
            code,
            message,
            param,
            allow,
            more,
        )

    @property
    def row(self) -> Row:
        """How this code is told. A code from a worker that is not in the table is the server's fault."""
        return ERRORS.get(self.code, ERRORS["gave_up"])

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the headers say about it."""
        found = list(self.more)
        if self.code == "invalid_api_key":
            found.append((b"www-authenticate", b"Bearer"))
        if self.allow is not None:
            found.append((b"allow", self.allow.encode()))
        if self.row.should_retry is not None:
            found.append((b"x-should-retry", b"true" if self.row.should_retry else b"false"))
        if self.row.retry_after is not None:
            found.append((b"retry-after", str(self.row.retry_after).encode()))
        return found


_CODES: dict[type[Exception], str] = {
    QueueFullError: "queue_full",
    DrainingError: "server_draining",
    NotRetriableError: "not_retriable",
    BudgetError: "overloaded",
    StoreFullError: "store_full",
}
CLIENT_ERRORS: tuple[type[Exception], ...] = (ApiError, LimitedError, *_CODES)
"""What is told to the client. Every other exception is a bug."""


def to_api_error(error: Exception) -> ApiError:
    """One of `CLIENT_ERRORS`, as the client is told it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LimitedError):
        return _limited(error)
    sentence = (
        "There is no room to keep another job. Try again later."
        if type(error) is StoreFullError
        else str(error)
    )
    return ApiError(_CODES[type(error)], sentence)


def _limited(error: LimitedError) -> ApiError:
    wait = (b"retry-after", str(min(error.seconds, 60)).encode())
    return ApiError("rate_limited", str(error), more=[wait, *limit_headers(error.status)])


def limit_headers(told: RateLimitStatus | None) -> list[tuple[bytes, bytes]]:
    """What a client may know of its limit, in OpenAI's words."""
    if told is None:
        return []
    return [
        (b"x-ratelimit-limit-requests", str(told.limit).encode()),
        (b"x-ratelimit-remaining-requests", str(told.remaining).encode()),
        (b"x-ratelimit-reset-requests", b"%ds" % told.reset),
    ]
