"""Signatures of Standard Webhooks (https://www.standardwebhooks.com), computed over the bytes sent.

The library of the standard signs strings only, which would copy a body of many megabytes twice. The
tests verify the signatures with that library.
"""

import binascii
import hmac
from base64 import b64decode, b64encode
from hashlib import sha256

from proxy.jobs.model import Job, Millis

PREFIX = "whsec_"
# The limits of the standard.
KEY_MIN_BYTES = 24
KEY_MAX_BYTES = 64
# The size of a generated key.
KEY_BYTES = 32


def format_secret(key: bytes) -> str:
    """Return a key in the format that receivers configure: `whsec_` and base64."""
    return PREFIX + b64encode(key).decode()


def read_secret(text: str) -> bytes:
    """Return the key of a secret in the format of `format_secret`. Raises ValueError."""
    encoded = text.removeprefix(PREFIX)
    try:
        key = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(PREFIX) or not KEY_MIN_BYTES <= len(key) <= KEY_MAX_BYTES:
        raise ValueError(
            f"a webhook secret must be {PREFIX} followed by the base64 encoding of"
            f" {KEY_MIN_BYTES} to {KEY_MAX_BYTES} random bytes"
        )
    return key


def message_id(job: Job) -> str:
    """Return the id of a job's end: the same for all tries, and a new one after a retry."""
    return f"{job.id}-{job.retry_count}"


def sign(key: bytes, message: str, now: Millis, body: bytes) -> dict[str, str]:
    """Return the headers that authenticate the sender of a body and the time `now`."""
    seconds = str(now // 1000)
    signature = hmac.new(key, f"{message}.{seconds}.".encode(), sha256)
    signature.update(body)
    return {
        "webhook-id": message,
        "webhook-timestamp": seconds,
        "webhook-signature": "v1," + b64encode(signature.digest()).decode(),
    }
