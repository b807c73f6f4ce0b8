"""Authentication by key. Only SHA-256 digests of keys are kept, and compared in constant time."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest

from proxy.jobs.model import Owner

KEY_ID_HEX_DIGITS = 12


class Kind(StrEnum):
    """The role of a key: it authenticates clients or workers."""

    CLIENT = "client"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of a request. Its jobs are visible to all keys of `owner`."""

    key_id: str
    owner: Owner
    kind: Kind


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The SHA-256 digest of a key, and the principal that it authenticates."""

    digest: bytes
    principal: Principal


def parted(text: str) -> tuple[str, str]:
    """Split `[OWNER=]KEY` into the owner, which may be empty, and the key."""
    owner, _, key = text.partition("=")
    # A key without an owner may end in the padding of base64, which consists of equals signs.
    return (owner, key) if key.strip("=") else ("", text)


def stored_key(text: str, kind: Kind) -> StoredKey:
    """Return the stored form of `[OWNER=]KEY`.

    Without OWNER, the owner is the first 12 hex digits of the key's SHA-256.
    """
    owner, key = parted(text)
    digest = sha256(key.encode()).digest()
    key_id = digest.hex()[:KEY_ID_HEX_DIGITS]
    return StoredKey(digest, Principal(key_id, Owner(owner or key_id), kind))


def key_of(authorization: str) -> str:
    """Return the key in a header's value, which is `Bearer KEY` or the key alone."""
    value = authorization.strip()
    scheme, _, rest = value.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value


ANONYMOUS = Principal("anonymous", Owner("anonymous"), Kind.CLIENT)


class Keys:
    """All keys of this proxy. Without any client key, every client is `anonymous`."""

    def __init__(self, keys: Sequence[StoredKey]) -> None:
        self._keys = tuple(keys)
        self._open = not any(key.principal.kind is Kind.CLIENT for key in keys)

    def authenticate(self, authorization: str | None, kind: Kind) -> Principal | None:
        """Return the principal of an `Authorization` value, or None if no key of this kind matches.

        The value is `Bearer KEY` or the key alone.
        """
        if kind is Kind.CLIENT and self._open:
            return ANONYMOUS
        if not authorization:
            return None
        digest = sha256(key_of(authorization).encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if compare_digest(key.digest, digest) and key.principal.kind is kind:
                found = key.principal
        return found
