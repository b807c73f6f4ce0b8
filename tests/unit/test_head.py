"""Validation of the head of a request."""

import pytest

from proxy.edge.head import (
    HEAD_MAX_FIELDS,
    Hosts,
    check_head,
    head_size,
    is_host,
    longest_line,
    read_target,
)

HOST = (b"host", b"localhost:8000")
TOO_LONG_HOST = b"a" * 255


def refused(
    *fields: tuple[bytes, bytes],
    target: bytes = b"/",
    version: str = "1.1",
    hosts: Hosts | None = None,
) -> str:
    """Return the code of the refusal; empty if the head is valid."""
    fault = check_head(target, version, fields, hosts or Hosts())
    return fault.code if fault is not None else ""


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"a.example",
        b"A.EXAMPLE:443",
        b"127.0.0.1:80",
        b"[::1]:8000",
        b"my_service:8000",
        b"a.example.",
    ],
)
def test_a_host_is_a_name_or_an_address_with_an_optional_port(host: bytes) -> None:
    assert not refused((b"host", host))


INVALID_HOSTS = [
    b"", b" ", b"a/health?x=", b"a b", b"user@a", b"a:b", b"a:", b"a:123456", b"a:99999", b"[::1",
    b"::1", b"a,b", b"a\\b", b"a#b", b"\xc3\xa9.example", b"-a", b".a", b"a%2fb", b"[::1]x",
    TOO_LONG_HOST,
]  # fmt: skip


@pytest.mark.parametrize("host", INVALID_HOSTS)
def test_an_invalid_host_is_rejected(host: bytes) -> None:
    assert refused((b"host", host)) == "bad_request"


def test_exactly_one_host_is_required() -> None:
    assert refused() == "bad_request"
    assert refused(HOST, HOST) == "bad_request"


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:1", b"127.0.0.1", b"127.9.9.9:8000", b"[::1]"]
)
def test_without_a_key_loopback_names_are_accepted(host: bytes) -> None:
    assert not refused((b"host", host), hosts=Hosts(is_open=True))


@pytest.mark.parametrize(
    "host", [b"evil.example", b"localhost.evil.example", b"10.0.0.1", b"127.0.0.1.evil.example"]
)
def test_without_a_key_other_names_are_rejected(host: bytes) -> None:
    assert refused((b"host", host), hosts=Hosts(is_open=True)) == "host_not_allowed"


def test_the_operator_may_list_the_allowed_hosts() -> None:
    for is_open in (True, False):
        hosts = Hosts(frozenset({b"api.example"}), is_open=is_open)
        assert not refused((b"host", b"API.example:443"), hosts=hosts)
        assert not refused(HOST, hosts=hosts)
        assert refused((b"host", b"other.example"), hosts=hosts) == "host_not_allowed"


@pytest.mark.parametrize(
    "fields",
    [
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"5"), (b"content-length", b"5")],
        [(b"content-length", b"+5")],
        [(b"content-length", b"5, 5")],
        [(b"content-length", b"0" * 5_000 + b"5")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"identity")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
        [(b"content-type", b"a/b"), (b"content-type", b"a/b")],
        [(b"expect", b"a miracle")],
        [(b"upgrade", b"websocket"), (b"content-length", b"5")],
    ],
)
def test_ambiguous_framing_is_rejected(fields: list[tuple[bytes, bytes]]) -> None:
    assert refused(HOST, *fields) == "bad_request"


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"x", b"gzip, identity"])
def test_a_content_encoding_is_rejected(coding: bytes) -> None:
    assert refused(HOST, (b"content-encoding", coding)) == "unsupported_media_type"
    assert not refused(HOST, (b"content-encoding", b"Identity"))


@pytest.mark.parametrize(
    "target",
    [
        *(b"", b"*", b"a/b", b"/a#b", b"a:443", b"http:/a", b"http:a/b", b"ftp://a/b", b"http//a"),
        *(b"http://", b"http:///b", b"http://a#b", b"http://u@a/b", b"http://a b", b"http://a:x/"),
    ],
)
def test_a_target_that_is_not_a_path_or_a_url_is_rejected(target: bytes) -> None:
    assert refused(HOST, target=target) == "bad_request"


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"/a?b", b"/a?b", None),
        (b"http://a.example/b?c", b"/b?c", b"a.example"),
        (b"HTTPS://a.example:443", b"/", b"a.example:443"),
        (b"http://a?b=/c", b"/?b=/c", b"a"),
        (b"http://[::1]:8000//b", b"//b", b"[::1]:8000"),
    ],
)
def test_a_target_has_a_path_and_perhaps_a_host(
    target: bytes, path: bytes, host: bytes | None
) -> None:
    assert read_target(target) == (path, host)
    assert not refused(HOST, target=target)


def test_the_host_of_the_target_is_checked_instead_of_the_field() -> None:
    hosts = Hosts(is_open=True)
    other = (b"host", b"evil.example")
    assert not refused(other, target=b"http://localhost/", hosts=hosts)
    assert refused(HOST, target=b"http://evil.example/", hosts=hosts) == "host_not_allowed"
    assert refused((b"host", b"a b"), target=b"http://localhost/", hosts=hosts) == "bad_request"
    assert refused(target=b"http://localhost/", hosts=hosts) == "bad_request"


def test_only_http_1_0_may_have_no_host() -> None:
    assert not refused(version="1.0")
    assert refused((b"host", b""), version="1.0") == "bad_request"
    hosts = Hosts(is_open=True)
    assert refused((b"host", b"a"), version="1.0", hosts=hosts) == "host_not_allowed"
    assert refused(target=b"http://a/", version="1.0", hosts=hosts) == "host_not_allowed"


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0"])
def test_other_versions_of_http_are_rejected(version: str) -> None:
    assert refused(HOST, version=version) == "bad_request"
    assert not refused(HOST, (b"transfer-encoding", b"chunked"))
    assert refused(HOST, (b"transfer-encoding", b"chunked"), version="1.0") == "bad_request"
    assert refused(HOST, (b"upgrade", b"websocket"), version="1.0") == "bad_request"


def test_the_size_of_a_head_is_limited() -> None:
    assert head_size(b"/" + b"a" * 10, [(b"name", b"value")]) == 24
    fields = [(b"a", b"b")] * (HEAD_MAX_FIELDS - 1)
    assert not refused(HOST, *fields)
    assert refused(HOST, *fields, (b"a", b"b")) == "head_too_large"


def test_the_longest_line_of_a_head() -> None:
    assert longest_line(b"/path", []) == 5
    assert longest_line(b"/path", [(b"a", b"b"), (b"name", b"value")]) == 11


def test_a_host_name_has_no_port() -> None:
    assert is_host("api.example")
    assert is_host("[::1]")
    for text in ("api.example:443", "https://api.example", "", "a b", "*.example"):
        assert not is_host(text)
