from secrets import token_bytes

import pytest

from proxy.access.encryption import OtherSealError, Seal, new_key
from proxy.jobs.webhook import receiver

WEBHOOK = "https://Hooks.example:8443/path/secret?token=secret#secret"


def test_what_is_sealed_is_not_there_to_read_and_comes_back() -> None:
    seal = Seal(new_key(token_bytes), token_bytes)
    sealed = seal.close(b"very secret")
    assert b"secret" not in sealed
    assert sealed != seal.close(b"very secret")
    assert seal.open(sealed) == b"very secret"


def test_another_key_or_a_changed_secret_does_not_open() -> None:
    seal = Seal(new_key(token_bytes), token_bytes)
    sealed = seal.close(b"very secret")
    with pytest.raises(OtherSealError):
        Seal(new_key(token_bytes), token_bytes).open(sealed)
    with pytest.raises(OtherSealError):
        seal.open(sealed[:-1] + bytes([sealed[-1] ^ 1]))


def test_of_a_webhook_only_its_receiver_can_be_read() -> None:
    seal = Seal(new_key(token_bytes), token_bytes)
    kept = seal.close_webhook(WEBHOOK)
    assert "secret" not in kept
    assert "path" not in kept
    assert receiver(kept) == receiver(WEBHOOK) == "https://hooks.example"
    assert seal.open_webhook(kept) == WEBHOOK
    with pytest.raises(OtherSealError):
        Seal(new_key(token_bytes), token_bytes).open_webhook(kept)


def test_a_webhook_from_before_they_were_sealed_is_itself() -> None:
    assert Seal(new_key(token_bytes), token_bytes).open_webhook(WEBHOOK) == WEBHOOK


def test_a_number_opens_in_its_own_context_only() -> None:
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
