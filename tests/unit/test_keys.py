"""Authentication by key."""

from hashlib import sha256

import pytest

from proxy.access.keys import ANONYMOUS, Keys, Kind, key_of, stored_key

KEYS = Keys(
    [
        stored_key("alice=secret-a", Kind.CLIENT),
        stored_key("secret-b", Kind.CLIENT),
        stored_key("t", Kind.WORKER),
    ]
)


@pytest.mark.parametrize(
    "header", ["Bearer secret-a", "bearer secret-a", "secret-a", "  Bearer   secret-a  "]
)
def test_a_key_is_accepted_with_and_without_bearer(header: str) -> None:
    principal = KEYS.authenticate(header, Kind.CLIENT)
    assert principal is not None
    assert principal.owner == "alice"


@pytest.mark.parametrize("header", ["", " ", "Bearer", "bearer ", "BEARER   "])
def test_a_header_may_have_no_key(header: str) -> None:
    assert key_of(header) == ""


def test_the_default_owner_is_a_part_of_the_digest() -> None:
    principal = KEYS.authenticate("secret-b", Kind.CLIENT)
    assert principal is not None
    assert principal.owner == sha256(b"secret-b").hexdigest()[:12]


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "alice=secret-a", "Basic secret-a", "t", "é"]
)
def test_other_credentials_are_rejected(header: str | None) -> None:
    assert KEYS.authenticate(header, Kind.CLIENT) is None


def test_keys_of_clients_and_workers_are_distinct() -> None:
    assert KEYS.authenticate("secret-a", Kind.WORKER) is None
    assert KEYS.authenticate("Bearer t", Kind.WORKER) is not None


def test_without_client_keys_every_client_is_anonymous() -> None:
    keys = Keys([stored_key("t", Kind.WORKER)])
    assert keys.authenticate("Bearer anything", Kind.CLIENT) is ANONYMOUS
    assert keys.authenticate(None, Kind.CLIENT) is ANONYMOUS
    assert keys.authenticate("Bearer anything", Kind.WORKER) is None


def test_a_key_may_end_in_equals_signs() -> None:
    keys = Keys([stored_key("YWJjZA==", Kind.CLIENT)])
    assert keys.authenticate("YWJjZA==", Kind.CLIENT) is not None


def test_a_stored_key_does_not_reveal_the_key() -> None:
    assert "secret" not in repr(stored_key("alice=secret-a", Kind.CLIENT))
