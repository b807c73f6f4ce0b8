"""Encryption of secrets, webhooks and numbers."""

from secrets import token_bytes

import pytest

from proxy.access.encryption import OtherSealError, Seal, new_key
from proxy.jobs.webhook import receiver_address

WEBHOOK = "https://Hooks.example:8443/path/secret?token=secret#secret"


def test_a_secret_is_encrypted_and_decrypted() -> None:
    seal = Seal(new_key(token_bytes), token_bytes)
    sealed = seal.close(b"very secret")
    assert b"secret" not in sealed
    assert sealed != seal.close(b"very secret")
    assert seal.open(sealed) == b"very secret"


def test_another_key_or_a_changed_ciphertext_is_rejected() -> None:
    seal = Seal(new_key(token_bytes), token_bytes)
    sealed = seal.close(b"very secret")
    with pytest.raises(OtherSealError):
        Seal(new_key(token_bytes), token_bytes).open(sealed)
    with pytest.raises(OtherSealError):
        seal.open(sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_only_the_address_of_a_stored_webhook_is_readable() -> None:
    seal = Seal(new_key(token_bytes), token_bytes)
    kept = seal.close_webhook(WEBHOOK)
    assert "secret" not in kept
    assert "path" not in kept
    assert receiver_address(kept) == receiver_address(WEBHOOK) == "https://hooks.example:8443"
    assert seal.open_webhook(kept) == WEBHOOK
    with pytest.raises(OtherSealError):
        Seal(new_key(token_bytes), token_bytes).open_webhook(kept)


def test_an_unencrypted_webhook_of_an_older_version_is_accepted() -> None:
    assert Seal(new_key(token_bytes), token_bytes).open_webhook(WEBHOOK) == WEBHOOK


def test_a_number_is_decrypted_in_its_own_context_only() -> None:
    seal = Seal(new_key(token_bytes), token_bytes)
    numbers = (0, 1, 2**53)
    sealed = [seal.close_number(number, "alice") for number in numbers]
    assert [seal.open_number(text, "alice") for text in sealed] == [*numbers]
    assert {len(text) for text in sealed} == {48}
    for text, context in (
        (sealed[0], "bob"),
        (sealed[0][:-4], "alice"),
        ("", "alice"),
        ("\u00fc", "alice"),
        ("!", "alice"),
    ):
        with pytest.raises(OtherSealError):
            seal.open_number(text, context)
    with pytest.raises(OtherSealError):
        Seal(new_key(token_bytes), token_bytes).open_number(sealed[0], "alice")
