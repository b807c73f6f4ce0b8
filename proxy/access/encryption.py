"""What is not for others to read: secrets that a job brings (`s3Config`, its webhook) and cursors. AES-256-GCM."""

import base64

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.jobs.ids import RandomBytes
from proxy.jobs.webhook import receiver

KEY_BYTES = 32
NONCE_BYTES = 12  # fresh for each secret
NUMBER_BYTES = 8
BEFORE_SEALED = " "  # stands in no URL that a webhook may have


class OtherSealError(ValueError):
    """It was sealed with another key, or has been changed since."""


class Seal:
    """Seals and opens with one key, which is kept beside the store and not in it."""

    def __init__(self, key: str, random_bytes: RandomBytes) -> None:
        self._cipher = AESGCM(base64.b64decode(key))
        self._random_bytes = random_bytes

    def close(self, secret: bytes) -> bytes:
        """The secret as it is kept."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, None)

    def open(self, sealed: bytes) -> bytes:
        """The secret, or `OtherSealError`."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except InvalidTag:
            raise OtherSealError(
                "it was sealed with another key than this data directory's `seal-key`"
            ) from None

    def close_number(self, number: int, context: str) -> str:
        """Return a number as an opaque text of always the same length, which opens only in this context."""
        nonce = self._random_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(
            nonce, number.to_bytes(NUMBER_BYTES), context.encode()
        )
        return base64.urlsafe_b64encode(sealed).decode()

    def open_number(self, text: str, context: str) -> int:
        """Return the number; `OtherSealError` for any text that `close_number` did not make with this context."""
        try:
            sealed = base64.b64decode(text, b"-_", validate=True)
            opened = self._cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context.encode()
            )
        except (InvalidTag, ValueError):
            raise OtherSealError("it was not sealed here, or for another context") from None
        return int.from_bytes(opened)

    def close_webhook(self, url: str) -> str:
        """A webhook's URL as it is kept. Whom it tells can be read still: a store shares out deliveries by that."""
        return (
            f"{receiver(url)}{BEFORE_SEALED}{base64.b64encode(self.close(url.encode())).decode()}"
        )

    def open_webhook(self, kept: str) -> str:
        """The URL, or `OtherSealError`. One that was kept before URLs were sealed is itself."""
        _, separator, sealed = kept.partition(BEFORE_SEALED)
        return self.open(base64.b64decode(sealed)).decode() if separator else kept


def new_key(random_bytes: RandomBytes) -> str:
    """A key as it is written down."""
    return base64.b64encode(random_bytes(KEY_BYTES)).decode()
