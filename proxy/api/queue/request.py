"""The body of `run` and `runsync`: an `input`, which stays the bytes it is, and options, which are checked.

Unknown keys are ignored: the clients of the public platform send some.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from proxy.access.encryption import Seal
from proxy.api.body import decode_object, read_text
from proxy.api.errors import ApiError
from proxy.api.numbers import read_floor, read_whole
from proxy.jobs.model import Millis
from proxy.service.durable import TTL, JobRequest
from proxy.service.json_text import in_thread_if_large

MIN_EXECUTION_TIMEOUT_MS, MAX_EXECUTION_TIMEOUT_MS = 5_000, 7 * 24 * 3600_000
MIN_TTL_MS, MAX_TTL_MS = 10_000, 7 * 24 * 3600_000
MIN_REMAINING_TTL_MS = 1_000  # of `?ttl=` on a job that is there
MIN_WAIT_MS, MAX_WAIT_MS, DEFAULT_WAIT_MS = 1_000, 300_000, Millis(90_000)
WEBHOOK_URL_MAX_CHARACTERS = 2_048
WEBHOOK_FIELD_MAX_BYTES = (
    6 * WEBHOOK_URL_MAX_CHARACTERS + 2
)  # as it is written, with an escape for each character
S3_CONFIG_MAX_BYTES = (
    64 * 1024
)  # of `s3Config`: names and keys, a few hundred bytes; it is kept apart, and sealed in one piece
NULL = msgspec.Raw(b"null")

CheckUrl: TypeAlias = Callable[[str], None]
"""Whether a webhook may go there: raises `ValueError` with a sentence if not."""


class _Policy(msgspec.Struct, rename="camel"):
    execution_timeout: int | None = None
    ttl: int | None = None
    low_priority: bool | None = None


class _Envelope(msgspec.Struct, rename={"s3_config": "s3Config"}):
    input: msgspec.Raw = NULL
    webhook: msgspec.Raw = NULL
    policy: _Policy | None = None
    s3_config: msgspec.Raw = NULL  # for the worker, which gets it as it was written


_decoder = msgspec.json.Decoder(_Envelope)


async def read_order(
    body: bytes, check_url: CheckUrl, seal: Seal, sync_wait: Millis | None = None
) -> JobRequest:
    """The order in a body; `ApiError` says what is wrong with it."""
    found, given = await in_thread_if_large(_decode, body)
    if given == bytes(NULL):
        raise ApiError(
            "invalid_body", '`input` is missing: send {"input": ...} with any value but null.'
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
        _check_webhook(webhook, check_url)
    return JobRequest(
        given,
        execution_timeout=execution,
        ttl=TTL if ttl is None else ttl,
        low_priority=bool(policy.low_priority),
        webhook=seal.close_webhook(webhook) if webhook else None,
        s3_config=_sealed(found.s3_config, seal),
        sync_wait=sync_wait,
    )


def read_number(name: str, text: str | None, least: int, most: int, unit: str = "") -> int | None:
    """Return a whole number in a query within its bounds, or None where it is not given; else raise `ApiError`."""
    if not text:
        return None
    value = read_whole(text)
    if value is None or not least <= value <= most:
        raise ApiError(
            "invalid_body", f"`{name}` must be a whole number{unit} from {least} to {most}.", name
        )
    return value


def read_millis(name: str, text: str | None, least: int, most: int) -> Millis | None:
    """Return a number of milliseconds as `read_number` does."""
    value = read_number(name, text, least, most, " of milliseconds")
    return None if value is None else Millis(value)


def read_wait(text: str | None) -> Millis | None:
    """Return how long a client wants to be held, or None where it does not say; `ApiError` if it is not a number.

    A number out of range is brought into it: the SDKs send whatever is left of their own timeout, also fractions.
    """
    if not text:
        return None
    value = read_floor(text)
    if value is None:
        raise ApiError("invalid_body", "`wait` must be a number of milliseconds.", "wait")
    return Millis(min(max(value, MIN_WAIT_MS), MAX_WAIT_MS))


def _between(name: str, value: int | None, least: int, most: int) -> Millis | None:
    if value is None:
        return None
    if not least <= value <= most:
        raise ApiError("invalid_body", f"`{name}` must be from {least} to {most} milliseconds.")
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
            "invalid_body", f"`webhook` may have {WEBHOOK_URL_MAX_CHARACTERS} characters."
        )
    try:
        check_url(url)
    except ValueError as error:
        raise ApiError("invalid_body", f"`webhook`: {error}") from None


def _decode(body: bytes) -> tuple[_Envelope, bytes]:
    """What is in a body, and its input apart, so that the body need not be kept."""
    found = decode_object(
        body, _decoder, 'The body must be a JSON object: {"input": ...}.', _wrong_type
    )
    given, found.input = bytes(found.input), NULL
    return found, given


def _wrong_type(error: msgspec.ValidationError) -> ApiError:
    return ApiError("invalid_body", f"The body has a value of the wrong type: {error}.")
