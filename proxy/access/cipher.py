"""AES-256-GCM. `encryption` imports this module at the first use: its library takes 7 MB of memory,
and most proxies encrypt nothing.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Cipher:
    """Authenticated encryption with one key of 32 bytes. `context` is not part of the result, but
    decryption needs the same one.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def encrypt(self, nonce: bytes, plain: bytes, context: bytes | None) -> bytes:
        """Return the ciphertext with its tag."""
        return self._cipher.encrypt(nonce, plain, context)

    def decrypt(self, nonce: bytes, encrypted: bytes, context: bytes | None) -> bytes:
        """Return the plain bytes.

        Raises ValueError for another key or context, a modified text, or an invalid nonce.
        """
        try:
            return self._cipher.decrypt(nonce, encrypted, context)
        except InvalidTag:
            raise ValueError("not encrypted with this key for this context") from None
