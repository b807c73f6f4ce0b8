"""Who is calling: keys are known by their SHA-256 only, and compared in constant time."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest

from proxy.jobs.model import Owner

KEY_ID_DIGITS = 12


class Kind(StrEnum):
    """What a key is good for."""

    CLIENT = "client"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from. `owner` is who may see its jobs."""

    key_id: str
    owner: Owner
    kind: Kind


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it is kept: its digest, never itself."""

    digest: bytes
    principal: Principal


def parted(text: str) -> tuple[str, str]:
    """The owner, or "", and the key in `[OWNER=]KEY`."""
    owner, _, key = text.partition("=")
    return (
        (owner, key) if key.strip("=") else ("", text)
    )  # a key may end in base64's own equals signs


def stored_key(text: str, kind: Kind) -> StoredKey:
    """`[OWNER=]KEY` as it is kept. An owner without a name is the first 12 hex digits of the key's SHA-256."""
    owner, key = parted(text)
    digest = sha256(key.encode()).digest()
    key_id = digest.hex()[:KEY_ID_DIGITS]
    return StoredKey(digest, Principal(key_id, Owner(owner or key_id), kind))


ANONYMOUS = Principal("anonymous", Owner("anonymous"), Kind.CLIENT)


class Keys:
    """All keys of this proxy. With no client key at all, everyone who reaches the proxy is `anonymous`."""

    def __init__(self, keys: Sequence[StoredKey]) -> None:
        self._keys = tuple(keys)
        self._open = not any(key.principal.kind is Kind.CLIENT for key in keys)

    def authenticate(self, authorization: str | None, kind: Kind) -> Principal | None:
        """Who this `Authorization` value belongs to (`Bearer KEY` or the bare key); None if to nobody of that kind."""
        if kind is Kind.CLIENT and self._open:
            return ANONYMOUS
        if not authorization:
            return None
        scheme, separator, rest = authorization.strip().partition(" ")
        presented = (
            rest.strip() if separator and scheme.lower() == "bearer" else authorization.strip()
        )
        digest = sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if compare_digest(key.digest, digest) and key.principal.kind is kind:
                found = key.principal
        return found
