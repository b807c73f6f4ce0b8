"""The table of all errors that the proxy itself returns. `api.openai.dialects` and
`api.queue.response` format them.

`should_retry` is sent as `x-should-retry`, which both OpenAI SDKs obey. Without it they retry every
408, 409, 429 and 5xx twice, so a job that exceeded its execution timeout would run three times.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from proxy.access.limits import BudgetError, LimitedError, limit_headers
from proxy.service.admission import DrainingError, QueueFullError
from proxy.service.durable import NotRetriableError
from proxy.store.errors import OtherSubmissionError, StoreBusyError, StoreFullError, StoreGoneError

REQUEST_ERROR = "invalid_request_error"
SERVER_ERROR = "server_error"


class Row(NamedTuple):
    """The HTTP properties of an error code; `type` is the field of OpenAI's error object."""

    status: int
    type: str
    should_retry: bool | None = None
    # Seconds, at most 60: OpenAI's SDK for Python 1 ignores a longer delay, and SDK 2 does not
    # retry after more than 120.
    retry_after: int | None = None

    @property
    def is_final(self) -> bool:
        """True if a repetition of the request would get the same error."""
        if self.should_retry is not None:
            return not self.should_retry
        return self.status not in RETRIED_CLIENT_ERRORS


# Statuses below 500 after which OpenAI's SDKs send a request again.
RETRIED_CLIENT_ERRORS = (408, 409, 425, 429)
ERRORS: dict[str, Row] = {
    "bad_request": Row(400, REQUEST_ERROR),
    "invalid_json": Row(400, REQUEST_ERROR),
    "invalid_body": Row(400, REQUEST_ERROR),
    "invalid_api_key": Row(401, REQUEST_ERROR),
    "host_not_allowed": Row(403, REQUEST_ERROR),
    "foreign_origin": Row(403, REQUEST_ERROR),
    "not_found": Row(404, REQUEST_ERROR),
    "endpoint_not_found": Row(404, REQUEST_ERROR),
    "model_not_found": Row(404, REQUEST_ERROR),
    "route_not_served": Row(404, REQUEST_ERROR),
    "job_not_found": Row(404, REQUEST_ERROR),
    "not_retriable": Row(409, REQUEST_ERROR, should_retry=False),
    "idempotency_key_reused": Row(409, REQUEST_ERROR, should_retry=False),
    "idempotency_key_in_use": Row(409, REQUEST_ERROR, should_retry=True, retry_after=1),
    "method_not_allowed": Row(405, REQUEST_ERROR),
    "request_timeout": Row(408, REQUEST_ERROR),
    "request_too_large": Row(413, REQUEST_ERROR),
    "upgrade_required": Row(426, REQUEST_ERROR),
    "head_too_large": Row(431, REQUEST_ERROR),
    "unsupported_media_type": Row(415, REQUEST_ERROR),
    "rate_limited": Row(429, "rate_limit_exceeded"),
    "queue_full": Row(429, "rate_limit_exceeded", retry_after=5),
    "job_cancelled": Row(409, SERVER_ERROR, should_retry=False),
    "engine_error": Row(500, SERVER_ERROR, should_retry=False),
    "internal_error": Row(500, SERVER_ERROR, should_retry=False),
    # No retry, because the call has run.
    "worker_lost": Row(502, SERVER_ERROR, should_retry=False),
    "gave_up": Row(502, SERVER_ERROR, should_retry=False),
    "answer_too_large": Row(502, SERVER_ERROR, should_retry=False),
    "no_workers": Row(503, SERVER_ERROR, should_retry=True, retry_after=30),
    "store_full": Row(503, SERVER_ERROR, should_retry=True, retry_after=30),
    "store_busy": Row(503, SERVER_ERROR, should_retry=True, retry_after=5),
    "store_gone": Row(503, SERVER_ERROR, should_retry=True, retry_after=30),
    "overloaded": Row(503, SERVER_ERROR, should_retry=True, retry_after=5),
    "too_many_connections": Row(503, SERVER_ERROR, should_retry=True, retry_after=5),
    "server_draining": Row(503, SERVER_ERROR, should_retry=True, retry_after=5),
    "execution_timeout": Row(504, SERVER_ERROR, should_retry=False),
    "expired": Row(504, SERVER_ERROR, should_retry=False),
}


class ApiError(Exception):
    """An error response.

    `code` is a key of `ERRORS`, or a code that a worker sent. `message` is a sentence for the
    client, `param` the name of the invalid field, `allow` the value of the `Allow` header, and
    `more` further response headers.
    """

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        allow: str | None = None,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.allow = allow
        self.more = more

    @property
    def row(self) -> Row:
        """The table row of the code; for an unknown code of a worker, the row of `gave_up`."""
        return ERRORS.get(self.code, ERRORS["gave_up"])

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the response headers that belong to the error."""
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


BUG = "Internal error of the proxy. Report it to the operator, whose log has the cause."
"""The message for a request that a bug of the proxy has ended."""

RenderError: TypeAlias = Callable[[str, ApiError], bytes]
"""Returns the JSON body of an error, in the format of the API at this path."""

_CODES: dict[type[Exception], str] = {
    QueueFullError: "queue_full",
    DrainingError: "server_draining",
    NotRetriableError: "not_retriable",
    OtherSubmissionError: "idempotency_key_reused",
    BudgetError: "overloaded",
    StoreFullError: "store_full",
    StoreBusyError: "store_busy",
    StoreGoneError: "store_gone",
}

# The texts of these exceptions are for the operator.
_MESSAGES: dict[type[Exception], str] = {
    StoreFullError: "The server has no disk space for another job. Retry later.",
    StoreBusyError: "The server's database does not respond. Retry in a moment.",
    StoreGoneError: "The server's database is gone. Retry when its operator has restarted it.",
}
CLIENT_ERRORS: tuple[type[Exception], ...] = (ApiError, LimitedError, *_CODES)
"""The exceptions that are returned to the client. Every other exception is a bug."""


def to_api_error(error: Exception) -> ApiError:
    """Convert one of `CLIENT_ERRORS` to the response that the client receives."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LimitedError):
        return _limited(error)
    return ApiError(_CODES[type(error)], _MESSAGES.get(type(error)) or str(error))


def _limited(error: LimitedError) -> ApiError:
    wait = (b"retry-after", str(min(error.seconds, 60)).encode())
    return ApiError("rate_limited", str(error), more=[wait, *limit_headers(error.status)])
