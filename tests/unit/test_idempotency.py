"""The headers of repeated requests, and the digests of their bodies."""

import pytest

from proxy.api.errors import ApiError
from proxy.api.idempotency import KEY_MAX_CHARACTERS, Repetition, body_digest, read_repetition

JSON = "application/json"


def form(boundary: str, text: bytes = b"x") -> tuple[str, bytes]:
    mark = b"--" + boundary.encode()
    part = b'\r\ncontent-disposition: form-data; name="file"\r\n\r\n%b\r\n' % text
    return f"multipart/form-data; boundary={boundary}", mark + part + mark + b"--\r\n"


@pytest.mark.parametrize(("key", "count", "found"), [
    (b"a", None, Repetition("a", 0)),
    (b"a b~", b"2", Repetition("a b~", 2)),
    (None, b"0", Repetition(None, 0)),
    (None, b"1", Repetition(None, 1)),
    (b"", b"3", Repetition(None, 3)),
    (None, b"-1", None),
    (None, b"1.5", None),
    (None, "²".encode(), None),
    (b"", None, None),
])  # fmt: skip
def test_both_headers_are_read(
    key: bytes | None, count: bytes | None, found: Repetition | None
) -> None:
    headers = {b"idempotency-key": key, b"x-stainless-retry-count": count}
    given = {name: value for name, value in headers.items() if value is not None}
    assert read_repetition(given) == found


@pytest.mark.parametrize("key", [b"x" * (KEY_MAX_CHARACTERS + 1), b"a\tb", b"\xff"])
def test_an_invalid_key_is_rejected(key: bytes) -> None:
    with pytest.raises(ApiError, match="printable ASCII"):
        read_repetition({b"idempotency-key": key})


def test_equal_bodies_have_equal_digests() -> None:
    assert body_digest(JSON, b"{}") == body_digest(JSON, b"{}")
    assert body_digest(JSON, b"{}") != body_digest(JSON, b"{ }")


def test_the_boundary_of_a_form_does_not_matter() -> None:
    assert body_digest(*form("one")) == body_digest(*form("two"))
    assert body_digest(*form("one")) != body_digest(*form("one", b"y"))
    assert len(body_digest("multipart/form-data", b"no boundary")) == 32
