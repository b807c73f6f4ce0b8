"""The start-up check for all combinations of hosts, keys and worker tokens."""

from itertools import product

import pytest

from proxy.access.keys import parted
from proxy.access.startup_check import is_loopback, refusal

LOOPBACK_HOSTS = (
    "127.0.0.1", "127.8.8.8", "localhost", "LocalHost", "::1", "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
)  # fmt: skip
EXPOSED_HOSTS = (
    "0.0.0.0", "::", "", "::ffff:0.0.0.0", "::ffff:10.0.0.1", "10.0.0.1", "192.168.1.1",
    "169.254.0.1", "fe80::1", "203.0.113.9", "2001:db8::1", "localhost.example",
    "127.0.0.1.example", "proxy", "ip6-localhost", "127.1", "2130706433", "0x7f000001",
    "127.0.0.1 ", "[::1]", "128.0.0.1", "::127.0.0.1",
)  # fmt: skip
GOOD = "k" * 24
TOKEN = "t" * 24
SHORT = "k" * 7
KEYS: dict[str, tuple[str, ...]] = {
    "no key": (),
    "a key": (GOOD,),
    "a key with an owner": (f"alice={GOOD}",),
    "two keys": (GOOD, f"bob={GOOD[::-1]}x"),
    "a short key": (SHORT,),
    "a short key of an owner": (f"alice-of-accounting={SHORT}",),
    "a short key beside a good one": (GOOD, SHORT),
    "an empty key": ("",),
    "a blank key": (" \t",),
    "an owner without a key": ("alice=",),
    "an owner with a blank key": ("alice=  ",),
    "an empty key beside a good one": (GOOD, ""),
    "the same of two owners": (f"alice={GOOD}", f"bob={GOOD}"),
    "the token as a key": (TOKEN,),
    "the token as an owner's key": (f"alice={TOKEN}",),
}
TOKENS = {
    "none yet": None,
    "a token": TOKEN,
    "a short token": "t" * 7,
    "an empty token": "",
    "a blank token": "\n ",
}


@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
def test_loopback_addresses_are_recognized(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", EXPOSED_HOSTS)
def test_other_addresses_are_exposed(host: str) -> None:
    assert not is_loopback(host)


def expected(host: str, keys: str, token: str) -> str | None:
    """Return a part of the expected refusal, from the names of the row; None if there is none."""
    if "empty" in keys or "blank" in keys or "without" in keys:
        return "a key is empty"
    if token in {"an empty token", "a blank token"}:
        return "--worker-token-file (PROXY_WORKER_TOKEN): the token is empty"
    if "the token" in keys and token == "a token":
        return "also the worker token"
    if "same" in keys:
        return "two owners have the same key"
    if host in LOOPBACK_HOSTS:
        return None
    if keys == "no key":
        return f"--host {host} (PROXY_HOST) can be reached by others, and no key is set"
    if "short" in keys + token:
        return f"--host {host} (PROXY_HOST) can be reached by others, and a key or"
    return None


@pytest.mark.parametrize(("keys", "token"), list(product(KEYS, TOKENS)))
def test_the_matrix_of_hosts_keys_and_tokens(keys: str, token: str) -> None:
    """Every refusal is one line that begins with the setting and contains no secret."""
    for host in (*LOOPBACK_HOSTS, *EXPOSED_HOSTS):
        refused = refusal(host, [parted(text) for text in KEYS[keys]], TOKENS[token])
        wanted = expected(host, keys, token)
        assert (refused is None) == (wanted is None), (host, refused)
        if refused is not None and wanted is not None:
            assert wanted in refused
            assert "\n" not in refused
            assert refused.startswith("--")
            assert not [secret for secret in (GOOD, TOKEN, SHORT) if secret in refused]


def test_without_a_key_exposed_hosts_are_refused() -> None:
    assert [
        host
        for host in EXPOSED_HOSTS
        for token in TOKENS.values()
        if refusal(host, [], token) is None
    ] == []


@pytest.mark.parametrize(
    ("keys", "token", "says"),
    [
        (["clé-secrète-1234"], None, "character 3 of a key"),
        ([f"{GOOD}\u200b"], None, "character 25 of a key"),
        ([GOOD, f"bob=\ufeff{GOOD}"], None, "character 1 of a key"),
        ([f"two words {GOOD}"], None, "character 4 of a key"),
        ([f"{GOOD}\u00a0"], None, "character 25 of a key"),
        ([f"élise={GOOD}"], None, "character 1 of an owner"),
        ([f"al ice={GOOD}"], None, "character 3 of an owner"),
        ([GOOD], "tök" * 8, "character 2 of the token"),
        ([], f" {TOKEN}", "character 1 of the token"),
        ([], f"{TOKEN}\udce9", "character 25 of the token"),
    ],
)
def test_a_secret_that_no_header_can_carry_is_refused(
    keys: list[str], token: str | None, says: str
) -> None:
    refused = refusal("127.0.0.1", [parted(text) for text in keys], token)
    assert refused is not None
    assert says in refused
    assert "\n" not in refused
    assert not [secret for secret in (GOOD, TOKEN, "secr", "words") if secret in refused]


def test_a_long_key_may_end_in_padding() -> None:
    assert refusal("0.0.0.0", [parted("c2VjcmV0LXNlY3JldA==")], None) is None
