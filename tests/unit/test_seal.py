import pytest
from cryptography.exceptions import InvalidTag

from proxy.service.seal import Seal, new_key


def test_what_is_sealed_is_not_there_to_read_and_comes_back() -> None:
    seal = Seal(new_key())
    sealed = seal.close(b"very secret")
    assert b"secret" not in sealed
    assert sealed != seal.close(b"very secret")
    assert seal.open(sealed) == b"very secret"


def test_another_key_or_a_changed_secret_does_not_open() -> None:
    seal = Seal(new_key())
    sealed = seal.close(b"very secret")
    with pytest.raises(InvalidTag):
        Seal(new_key()).open(sealed)
    with pytest.raises(InvalidTag):
        seal.open(sealed[:-1] + bytes([sealed[-1] ^ 1]))
