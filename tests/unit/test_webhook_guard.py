"""The policy for webhook URLs."""

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address

import pytest
from harness.data import url_tricks
from hypothesis import given
from hypothesis import strategies as st

from proxy.jobs.webhook import receiver_address
from proxy.webhooks.addresses import is_public
from proxy.webhooks.url_policy import Allowed, BadWebhookError, check_url, read_url

NONE_ALLOWED = Allowed()
INSIDE = Allowed.read(["hooks", "Receiver.internal", "10.1.0.0/16", "fd00::/8", "127.0.0.1"])


@pytest.mark.parametrize("family", url_tricks.FAMILIES)
def test_tricks_are_refused_with_a_sentence(family: Callable[[int], Iterable[str]]) -> None:
    urls = set(family(8080))
    assert len(urls) > 30
    for url in urls:
        with pytest.raises(BadWebhookError) as refused:
            pytest.fail(f"{url!a} is read as {read_url(url, NONE_ALLOWED)}")
        assert re.fullmatch(r"(it|its|only) .+[.)]", str(refused.value))


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("https://example.com/hook", "example.com", 443, "/hook"),
        ("http://example.com", "example.com", 80, "/"),
        (
            "HTTPS://Hooks.Example.com:8443/A?b=%2f&c=a+b;d|e#f",
            "Hooks.Example.com",
            8443,
            "/A?b=%2f&c=a+b;d|e",
        ),
        ("https://example.com/a/../b//c@d", "example.com", 443, "/a/../b//c@d"),
        ("https://example.com?x=http://127.0.0.1/", "example.com", 443, "/?x=http://127.0.0.1/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"),
        ("https://my_hook.example.co.uk:65535/", "my_hook.example.co.uk", 65535, "/"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/"),
        ("https://[2606:4700:4700::1111]:1024/", "2606:4700:4700::1111", 1024, "/"),
        ("https://[::ffff:8.8.8.8]/", "::ffff:8.8.8.8", 443, "/"),
        ("https://[64:ff9b::808:808]/", "64:ff9b::808:808", 443, "/"),
        ("https://127.0.0.1.example.com/", "127.0.0.1.example.com", 443, "/"),
    ],
)
def test_public_urls_are_accepted_and_not_changed(
    text: str, host: str, port: int, path: str
) -> None:
    url = read_url(text, NONE_ALLOWED)
    assert (url.raw_host, url.port, url.raw_path_qs) == (host, port, path)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://hooks/",
            "http://HOOKS:8080/",
            "https://receiver.internal/",
            "http://10.1.2.3/",
            "http://[fd00::1]/",
        ),
        *("http://127.0.0.1:8000/", "http://[::ffff:10.1.2.3]/", "http://[64:ff9b::10.1.2.3]/"),
    ],
)
def test_the_operator_can_allow_private_receivers(url: str) -> None:
    check_url(url, INSIDE)
    with pytest.raises(BadWebhookError):
        check_url(url, NONE_ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://hooks2/",
            "http://sub.receiver.internal/",
            "http://10.2.0.1/",
            "http://127.0.0.2/",
            "http://[::1]/",
        ),
        *(
            "http://hooks:22/",
            "http://user@hooks/",
            "http://hooks./",
            "ftp://hooks/",
            "http://[::10.1.2.3]/",
        ),
    ],
)
def test_what_is_allowed_is_only_that(url: str) -> None:
    with pytest.raises(BadWebhookError):
        check_url(url, INSIDE)


@pytest.mark.parametrize(
    "word",
    ["10.0.0.1/8", "10.0.0.0/33", "http://hook", "a b", "127.1", "0x7f000001", "a/b", "", "."],
)
def test_an_allowed_receiver_is_a_name_or_a_network(word: str) -> None:
    with pytest.raises(ValueError, match="neither a host name nor a network"):
        Allowed.read([word])


def test_a_private_address_is_private_however_it_is_written() -> None:
    written = [
        *url_tricks.V4,
        *url_tricks.V6,
        *(one for text in url_tricks.V4 for one in url_tricks.hidden(text)),
    ]
    assert [text for text in written if is_public(ip_address(text))] == []


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.128.0.1", "2606:4700:4700::1111", "2a00::1"],
)
def test_a_public_address_is_public(text: str) -> None:
    assert is_public(ip_address(text))


@given(st.ip_addresses(v=4))
def test_hiding_an_address_never_makes_it_public(address: object) -> None:
    is_open = is_public(ip_address(str(address)))
    assert not any(
        is_public(ip_address(one)) and not is_open for one in url_tricks.hidden(str(address))
    )


@given(st.text() | st.from_regex(r"https?://[^/?#]{0,30}([/?#].*)?", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    receiver_address(text)
    try:
        url = read_url(text, NONE_ALLOWED)
    except BadWebhookError:
        return
    assert url.raw_host is not None
    assert url.raw_host.lower() in text.lower()
    host = f"[{url.raw_host}]" if ":" in url.raw_host else url.raw_host
    port = "" if url.is_default_port() else f":{url.port}"
    assert receiver_address(text) == f"{url.scheme}://{host}{port}".lower()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://Example.com:8443/secret?token=secret#secret", "https://example.com:8443"),
        ("https://user:secret@example.com/secret", "https://example.com"),
        ("http://[::1]:8080/secret", "http://[::1]:8080"),
        ("HTTPS://example.com:443/secret", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("https://example.com:80?secret", "https://example.com:80"),
        ("https://example.com:8443secret", "https://example.com"),
        ("secret", ""),
    ],
)
def test_a_log_has_scheme_host_and_port_only(url: str, shown: str) -> None:
    assert receiver_address(url) == shown
