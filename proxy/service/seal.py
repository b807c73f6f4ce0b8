"""Secrets that a job brings for its worker (`s3Config`), sealed for as long as the store has them: AES-256-GCM."""

import base64
from secrets import token_bytes

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12  # fresh for each secret


class Seal:
    """Seals and opens with one key, which is kept beside the store and not in it."""

    def __init__(self, key: str) -> None:
        self._cipher = AESGCM(base64.b64decode(key))

    def close(self, secret: bytes) -> bytes:
        """The secret as it is kept."""
        nonce = token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, None)

    def open(self, sealed: bytes) -> bytes:
        """The secret; `InvalidTag` if it was sealed with another key or has been changed."""
        return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)


def new_key() -> str:
    """A key as it is written down."""
    return base64.b64encode(token_bytes(KEY_BYTES)).decode()
