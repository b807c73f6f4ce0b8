"""What a head must look like to be let through."""

import pytest

from proxy.edge.head import HEAD_MAX_FIELDS, Hosts, check_head, head_size, is_host, longest_line

HOST = (b"host", b"localhost:8000")
LONGEST_HOST = b"a" * 254


def refused(
    *fields: tuple[bytes, bytes],
    target: bytes = b"/",
    version: str = "1.1",
    hosts: Hosts | None = None,
) -> str:
    """The code of the refusal; empty when it is let through."""
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
def test_a_host_is_a_name_or_an_address_and_perhaps_a_port(host: bytes) -> None:
    assert not refused((b"host", host))


@pytest.mark.parametrize(
    "host",
    [
        *(
            b"",
            b" ",
            b"a/health?x=",
            b"a b",
            b"user@a",
            b"a:b",
            b"a:",
            b"a:123456",
            b"a:99999",
            b"[::1",
            b"::1",
            b"a,b",
        ),
        *(
            b"a\\b",
            b"a#b",
            b"\xc3\xa9.example",
            b"-a",
            b".a",
            b"a%2fb",
            b"[::1]x",
            LONGEST_HOST + b"a",
        ),
    ],
)
def test_anything_else_is_no_host(host: bytes) -> None:
    assert refused((b"host", host)) == "bad_request"


def test_there_is_exactly_one_host() -> None:
    assert refused() == "bad_request"
    assert refused(HOST, HOST) == "bad_request"


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:1", b"127.0.0.1", b"127.9.9.9:8000", b"[::1]"]
)
def test_without_a_key_only_loopback_is_meant(host: bytes) -> None:
    assert not refused((b"host", host), hosts=Hosts(is_open=True))


@pytest.mark.parametrize(
    "host", [b"evil.example", b"localhost.evil.example", b"10.0.0.1", b"127.0.0.1.evil.example"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(host: bytes) -> None:
    assert refused((b"host", host), hosts=Hosts(is_open=True)) == "host_not_allowed"


def test_the_operator_names_the_hosts() -> None:
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
def test_a_body_has_one_length_and_one_type(fields: list[tuple[bytes, bytes]]) -> None:
    assert refused(HOST, *fields) == "bad_request"


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"x", b"gzip, identity"])
def test_a_body_comes_as_it_is(coding: bytes) -> None:
    assert refused(HOST, (b"content-encoding", coding)) == "unsupported_media_type"
    assert not refused(HOST, (b"content-encoding", b"Identity"))


@pytest.mark.parametrize("target", [b"", b"*", b"a/b", b"http://a/b", b"/a#b", b"a:443"])
def test_the_target_is_a_path(target: bytes) -> None:
    assert refused(HOST, target=target) == "bad_request"


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0"])
def test_http_1_is_spoken(version: str) -> None:
    assert refused(HOST, version=version) == "bad_request"
    assert not refused(HOST, (b"transfer-encoding", b"chunked"))
    assert refused(HOST, (b"transfer-encoding", b"chunked"), version="1.0") == "bad_request"
    assert refused(HOST, (b"upgrade", b"websocket"), version="1.0") == "bad_request"


def test_a_head_has_a_size() -> None:
    assert head_size(b"/" + b"a" * 10, [(b"name", b"value")]) == 24
    fields = [(b"a", b"b")] * (HEAD_MAX_FIELDS - 1)
    assert not refused(HOST, *fields)
    assert refused(HOST, *fields, (b"a", b"b")) == "head_too_large"


def test_the_longest_line_of_a_head() -> None:
    assert longest_line(b"/path", []) == 5
    assert longest_line(b"/path", [(b"a", b"b"), (b"name", b"value")]) == 11


def test_an_allowed_host_has_no_port() -> None:
    assert is_host("api.example")
    assert is_host("[::1]")
    for text in ("api.example:443", "https://api.example", "", "a b", "*.example"):
        assert not is_host(text)
