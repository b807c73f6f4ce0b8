"""One request of the queue API: its context, its query, and the body of `run` and `runsync`.

The bytes of `input` are kept, and the options are validated. Unknown fields are ignored, because
Runpod's clients send some.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar

import msgspec
from starlette.requests import Request

from proxy.access.encryption import Seal
from proxy.access.keys import ANONYMOUS, Principal
from proxy.access.limits import Share
from proxy.api.errors import ApiError
from proxy.api.http import (
    JSON_TYPE,
    ClientGoneError,
    decode_object,
    read_floor,
    read_json,
    read_text,
    read_whole,
    require_type,
)
from proxy.api.idempotency import KEY_HEADER, body_digest, read_key
from proxy.jobs.job_request import TTL, JobRequest
from proxy.jobs.model import Cursor, Millis, SubmissionKey
from proxy.service.endpoints import Endpoint
from proxy.service.json_text import in_thread_if_large

Waited = TypeVar("Waited")

MIN_EXECUTION_TIMEOUT_MS = 5_000
MAX_EXECUTION_TIMEOUT_MS = 7 * 24 * 3600_000
MIN_TTL_MS = 10_000
MAX_TTL_MS = 7 * 24 * 3600_000
# The lower bound of `?ttl=` for an existing job.
MIN_REMAINING_TTL_MS = 1_000
MIN_WAIT_MS = 1_000
MAX_WAIT_MS = 300_000
DEFAULT_WAIT_MS = Millis(90_000)
# The largest integer that JavaScript and other clients represent exactly.
MAX_CURSOR = 2**53
WEBHOOK_URL_MAX_CHARACTERS = 2_048
# The URL as a JSON string in which every character is a `\uXXXX` escape.
WEBHOOK_FIELD_MAX_BYTES = 6 * WEBHOOK_URL_MAX_CHARACTERS + 2
# A few hundred bytes are usual: names and keys. It is encrypted in one piece and stored separately.
S3_CONFIG_MAX_BYTES = 64 * 1024
NULL = msgspec.Raw(b"null")

CheckUrl: TypeAlias = Callable[[str], None]
"""Validates the URL of a webhook; raises `ValueError` with a message for the client."""


class _Policy(msgspec.Struct, rename="camel"):
    execution_timeout: int | None = None
    ttl: int | None = None
    low_priority: bool | None = None


class _Envelope(msgspec.Struct, rename={"s3_config": "s3Config"}):
    input: msgspec.Raw = NULL
    webhook: msgspec.Raw = NULL
    policy: _Policy | None = None
    # Passed to the worker unchanged.
    s3_config: msgspec.Raw = NULL


_decoder = msgspec.json.Decoder(_Envelope)


class OrderReader:
    """Reads the bodies of `run` and `runsync`.

    `check_url` validates webhook URLs, `seal` encrypts secrets before they are stored.
    """

    def __init__(self, check_url: CheckUrl, seal: Seal) -> None:
        self._check_url = check_url
        self._seal = seal

    async def read(self, body: bytes, sync_wait: Millis | None = None) -> JobRequest:
        """Parse a body. `sync_wait` is the wait of a `runsync` request. Raises `ApiError`."""
        found, given = await in_thread_if_large(_decode, body)
        if given == bytes(NULL):
            raise ApiError(
                "invalid_body",
                '`input` is missing: send {"input": ...} with any value except null.',
            )
        policy = found.policy or _Policy()
        execution = _between(
            "policy.executionTimeout",
            policy.execution_timeout,
            MIN_EXECUTION_TIMEOUT_MS,
            MAX_EXECUTION_TIMEOUT_MS,
        )
        ttl = _between("policy.ttl", policy.ttl, MIN_TTL_MS, MAX_TTL_MS)
        webhook = read_text("webhook", found.webhook, WEBHOOK_FIELD_MAX_BYTES)
        if webhook:
            _check_webhook(webhook, self._check_url)
        return JobRequest(
            given,
            execution_timeout=execution,
            ttl=TTL if ttl is None else ttl,
            low_priority=bool(policy.low_priority),
            webhook=self._seal.close_webhook(webhook) if webhook else None,
            s3_config=_sealed(found.s3_config, self._seal),
            sync_wait=sync_wait,
        )


def read_number(
    name: str, text: str | None, minimum: int, maximum: int, unit: str = ""
) -> int | None:
    """Return an integer query parameter, or None if it is missing or empty.

    Raises `ApiError` if it is not a number from `minimum` to `maximum`.
    """
    if not text:
        return None
    value = read_whole(text)
    if value is None or not minimum <= value <= maximum:
        message = f"`{name}` must be a whole number{unit} from {minimum} to {maximum}."
        raise ApiError("invalid_body", message, name)
    return value


def parse_cursor(text: str) -> Cursor | None:
    """Return a cursor (`ATTEMPT-POSITION`), or None if the text is not one.

    A plain number is a position in the output of the current attempt.
    """
    first, dash, last = text.partition("-")
    attempt = read_whole(first) if dash else 0
    position = read_whole(last if dash else first)
    if attempt is None or position is None or max(attempt, position) > MAX_CURSOR:
        return None
    return Cursor(attempt, position)


def read_cursor(name: str, text: str | None) -> Cursor:
    """Return the cursor in a query parameter; the beginning if it is missing or empty.

    Raises `ApiError`.
    """
    cursor = parse_cursor(text) if text else Cursor(0, 0)
    if cursor is None:
        message = f"`{name}` must be the `next` of an earlier response, or a number."
        raise ApiError("invalid_body", message, name)
    return cursor


def read_millis(name: str, text: str | None, minimum: int, maximum: int) -> Millis | None:
    """Return a query parameter in milliseconds, like `read_number`."""
    value = read_number(name, text, minimum, maximum, " of milliseconds")
    return None if value is None else Millis(value)


def read_wait(text: str | None) -> Millis | None:
    """Return the `?wait=` of `runsync` in milliseconds, or None if it is missing or empty.

    Raises `ApiError`, with the sentence of the public platform, unless it is an integer in range.
    """
    if not text:
        return None
    value = read_whole(text)
    if value is None or not MIN_WAIT_MS <= value <= MAX_WAIT_MS:
        raise ApiError(
            "invalid_body",
            f"wait is invalid; must be between {MIN_WAIT_MS} and {MAX_WAIT_MS}",
            "wait",
        )
    return Millis(value)


def read_poll_wait(text: str | None) -> Millis | None:
    """Return the `?wait=` of a long poll in milliseconds, or None if it is missing or empty.

    A number out of range is clamped and a fraction truncated, because Runpod's SDKs send the rest
    of their own timeout. Raises `ApiError` if it is not a number.
    """
    if not text:
        return None
    value = read_floor(text)
    if value is None:
        raise ApiError("invalid_body", "`wait` must be a number of milliseconds.", "wait")
    return Millis(min(max(value, MIN_WAIT_MS), MAX_WAIT_MS))


def _between(name: str, value: int | None, minimum: int, maximum: int) -> Millis | None:
    if value is None:
        return None
    if not minimum <= value <= maximum:
        raise ApiError(
            "invalid_body", f"`{name}` must be from {minimum} to {maximum} milliseconds."
        )
    return Millis(value)


def _sealed(config: msgspec.Raw, seal: Seal) -> bytes | None:
    if config == NULL:
        return None
    if len(config) > S3_CONFIG_MAX_BYTES or bytes(config)[:1] != b"{":
        raise ApiError(
            "invalid_body",
            f"`s3Config` must be a JSON object of at most {S3_CONFIG_MAX_BYTES} bytes.",
        )
    return seal.close(bytes(config))


def _check_webhook(url: str, check_url: CheckUrl) -> None:
    if len(url) > WEBHOOK_URL_MAX_CHARACTERS:
        raise ApiError(
            "invalid_body",
            f"`webhook` must be a URL of at most {WEBHOOK_URL_MAX_CHARACTERS} characters.",
        )
    try:
        check_url(url)
    except ValueError as error:
        raise ApiError("invalid_body", f"`webhook`: {error}") from None


def _decode(body: bytes) -> tuple[_Envelope, bytes]:
    """Return the options and a copy of the input, so that the body can be freed."""
    found = decode_object(body, _decoder, 'The body must be a JSON object: {"input": ...}.')
    given = bytes(found.input)
    found.input = NULL
    return found, given


# Headers that only browsers send. A web page can send a body without a content type to any origin,
# without a preflight request.
BROWSER_HEADERS = (b"origin", b"sec-fetch-site")


class RequestContext:
    """The request, its endpoint, and its caller (`owner` and `key`).

    `leave` ends the request for the rate limits; the operation may take it over. `answer`: the
    bytes that are reserved for the response.
    """

    def __init__(
        self,
        request: Request,
        endpoint: Endpoint,
        principal: Principal,
        share: Share,
        answer: Share,
    ) -> None:
        self.request = request
        self.endpoint = endpoint
        self.owner = principal.owner
        self.key = principal.key_id
        self._is_open = principal is ANONYMOUS
        self._share = share
        self.answer = answer
        self.leave: Callable[[], None] = nothing

    async def submission_key(self, operation: str, body: bytes) -> SubmissionKey | None:
        """Return the key of a submission, or None if it has no `Idempotency-Key`."""
        headers = dict(self.request.scope["headers"])
        if KEY_HEADER not in headers or (key := read_key(headers)) is None:
            return None
        digest = await in_thread_if_large(partial(body_digest, ""), body)
        return SubmissionKey(f"{operation} {key}", digest)

    def drop_body(self) -> None:
        """Give the body's bytes back to the budget, once the job is in the store."""
        self._share.give_back()

    def query(self, name: str) -> str | None:
        if not self.request.scope["query_string"]:
            return None
        return self.request.query_params.get(name)

    async def unless_gone(self, work: Coroutine[Any, Any, Waited]) -> Waited:
        """Await work that waits for a job; cancel it if the client disconnects.

        Output must not be consumed for a client that cannot receive it. Raises `ClientGoneError`.
        """
        gone = asyncio.ensure_future(_gone(self.request))
        scope = asyncio.timeout(None)
        try:
            async with scope:
                gone.add_done_callback(partial(_cancel, scope))
                return await work
        except TimeoutError:
            if scope.expired():
                raise ClientGoneError from None
            raise
        finally:
            gone.cancel()

    async def reserve(self, size: int) -> None:
        """Reserve `size` bytes in all for the response. Raises `BudgetError` (see
        `job_view.Reserve`).
        """
        self.answer.grow_to(size)

    async def body(self, limit: int) -> bytes:
        """Return the body, at most `limit` bytes.

        A missing content type counts as JSON, except in a browser's request to a proxy without API
        keys. Raises `ApiError`, `BudgetError` or `ClientGoneError`.
        """
        headers = dict(self.request.scope["headers"])
        is_browser = not headers.keys().isdisjoint(BROWSER_HEADERS)
        default = b"" if self._is_open and is_browser else JSON_TYPE
        require_type(headers.get(b"content-type", default), JSON_TYPE)
        return await read_json(self.request.receive, headers, limit, self._share)


async def _gone(request: Request) -> None:
    """Wait until the client has disconnected. The body has been read, or there is none."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _cancel(scope: asyncio.Timeout, gone: asyncio.Task[None]) -> None:
    """End the work in a scope whose client has disconnected."""
    # An error if the work has ended in the meantime.
    with suppress(RuntimeError):
        if not gone.cancelled():
            scope.reschedule(0.0)


def nothing() -> None:
    """Do nothing: the default of `RequestContext.leave`."""
