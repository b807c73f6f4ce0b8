"""AES-256-GCM encryption of cursors, and of secrets in a job (`s3Config`, its webhook's URL)."""

import base64
from functools import cached_property
from typing import TYPE_CHECKING

from proxy.jobs.model import RandomBytes
from proxy.jobs.webhook import receiver_address

if TYPE_CHECKING:
    from proxy.access.cipher import Cipher

KEY_BYTES = 32

# A nonce is generated for every encryption.
NONCE_BYTES = 12

SEALED_NUMBER_BYTES = 8

# Separates the address and the encrypted URL of a webhook. A valid URL does not contain it.
WEBHOOK_SEPARATOR = " "


class OtherSealError(ValueError):
    """A value was encrypted with another key or for another context, or was modified."""


class Seal:
    """Encrypts and decrypts with one key, which is stored in a file beside the job store."""

    def __init__(self, key: str, random_bytes: RandomBytes) -> None:
        """Use a key that was made by `new_key`."""
        self._key = base64.b64decode(key)
        self._random_bytes = random_bytes

    @cached_property
    def _cipher(self) -> "Cipher":
        from proxy.access.cipher import Cipher  # noqa: PLC0415 - most proxies never need it

        return Cipher(self._key)

    def close(self, secret: bytes) -> bytes:
        """Return the encrypted secret: the nonce, followed by the ciphertext and its tag."""
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, None)

    def open(self, sealed: bytes) -> bytes:
        """Return the decrypted secret. Raises OtherSealError."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except ValueError:
            raise OtherSealError(
                "encrypted with a key other than the `seal-key` of this data directory"
            ) from None

    def close_number(self, number: int, context: str) -> str:
        """Return an encrypted number as text of constant length, bound to a context."""
        nonce = self._random_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(
            nonce, number.to_bytes(SEALED_NUMBER_BYTES), context.encode()
        )
        return base64.urlsafe_b64encode(sealed).decode()

    def open_number(self, text: str, context: str) -> int:
        """Return the number in a text that `close_number` returned for the same context.

        Raises OtherSealError for every other text.
        """
        try:
            sealed = base64.b64decode(text, b"-_", validate=True)
            opened = self._cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context.encode()
            )
        except ValueError:
            raise OtherSealError("encrypted with another key or for another context") from None
        return int.from_bytes(opened)

    def close_webhook(self, url: str) -> str:
        """Return a webhook's URL in its stored form: the address in plain text, then the secret.

        The store needs the address to distribute deliveries fairly.
        """
        sealed = base64.b64encode(self.close(url.encode())).decode()
        return f"{receiver_address(url)}{WEBHOOK_SEPARATOR}{sealed}"

    def open_webhook(self, kept: str) -> str:
        """Return the URL of a stored webhook. Raises OtherSealError.

        Older versions stored URLs without encryption; such a URL is returned as it is.
        """
        _, separator, sealed = kept.partition(WEBHOOK_SEPARATOR)
        return self.open(base64.b64decode(sealed)).decode() if separator else kept


def is_key(text: str) -> bool:
    """Return True if a text is a key that `new_key` may have made."""
    try:
        return len(base64.b64decode(text, validate=True)) == KEY_BYTES
    except ValueError:
        return False


def new_key(random_bytes: RandomBytes) -> str:
    """Return a new random key in base64."""
    return base64.b64encode(random_bytes(KEY_BYTES)).decode()
