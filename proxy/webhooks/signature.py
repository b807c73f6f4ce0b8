"""Signatures as Standard Webhooks has them (https://www.standardwebhooks.com), over the bytes that are sent.

Its library signs text only, which would copy an answer of many megabytes twice; the tests verify with it.
"""

import binascii
import hmac
from base64 import b64decode, b64encode
from hashlib import sha256

from proxy.jobs.model import Job, Millis

PREFIX = "whsec_"
LEAST_BYTES, MOST_BYTES = 24, 64  # of a key, as the standard says
KEY_BYTES = 32


def format_secret(key: bytes) -> str:
    """A key as receivers are given it."""
    return PREFIX + b64encode(key).decode()


def read_secret(text: str) -> bytes:
    """The key in a secret; `ValueError` if there is none."""
    encoded = text.removeprefix(PREFIX)
    try:
        key = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(PREFIX) or not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise ValueError(
            f"a webhook secret is {PREFIX} and the base64 of {LEAST_BYTES} to {MOST_BYTES} random bytes"
        )
    return key


def message_id(job: Job) -> str:
    """The same for every try to tell this end of the job, and another for its end after a retry."""
    return f"{job.id}-{job.retry_count}"


def sign(key: bytes, message: str, now: Millis, body: bytes) -> dict[str, str]:
    """The headers that prove where a body comes from, and when it was sent."""
    seconds = str(now // 1000)
    signature = hmac.new(key, f"{message}.{seconds}.".encode(), sha256)
    signature.update(body)
    return {
        "webhook-id": message,
        "webhook-timestamp": seconds,
        "webhook-signature": "v1," + b64encode(signature.digest()).decode(),
    }
