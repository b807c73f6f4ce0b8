"""The start-up matrix: whoever could let in anybody does not start."""

from itertools import product

import pytest

from proxy.access.keys import parted
from proxy.access.startup_check import is_loopback, refusal

ALONE = (
    "127.0.0.1",
    "127.8.8.8",
    "localhost",
    "LocalHost",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
)
EXPOSED = (
    *(
        "0.0.0.0",
        "::",
        "",
        "::ffff:0.0.0.0",
        "::ffff:10.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.0.1",
        "fe80::1",
    ),
    *(
        "203.0.113.9",
        "2001:db8::1",
        "localhost.example",
        "127.0.0.1.example",
        "proxy",
        "ip6-localhost",
    ),
    *("127.1", "2130706433", "0x7f000001", "127.0.0.1 ", "[::1]", "128.0.0.1", "::127.0.0.1"),
)
GOOD, TOKEN, SHORT = "k" * 24, "t" * 24, "k" * 7
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


@pytest.mark.parametrize("host", ALONE)
def test_this_machine_alone_reaches_it_there(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", EXPOSED)
def test_others_reach_it_there(host: str) -> None:
    assert not is_loopback(host)


def word(host: str, keys: str, token: str) -> str | None:
    """What the refusal of a row of the matrix must speak of, judged by the names in it alone."""
    if "empty" in keys or "blank" in keys or "without" in keys:
        return "a key is empty"
    if token in {"an empty token", "a blank token"}:
        return "--worker-token-file (PROXY_WORKER_TOKEN): the token is empty"
    if "the token" in keys and token == "a token":
        return "also the worker token"
    if "same" in keys:
        return "two owners have the same key"
    if host in ALONE:
        return None
    if keys == "no key":
        return f"--host {host} can be reached by others, and no key is set"
    return (
        f"--host {host} can be reached by others, and a key or" if "short" in keys + token else None
    )


@pytest.mark.parametrize(("keys", "token"), list(product(KEYS, TOKENS)))
def test_the_matrix_of_hosts_keys_and_tokens(keys: str, token: str) -> None:
    """Every row that is refused is told in one line which setting it is, and never a secret."""
    for host in (*ALONE, *EXPOSED):
        refused = refusal(host, [parted(text) for text in KEYS[keys]], TOKENS[token])
        wanted = word(host, keys, token)
        assert (refused is None) == (wanted is None), (host, refused)
        if refused is not None and wanted is not None:
            assert wanted in refused
            assert "\n" not in refused
            assert refused.startswith("--")
            assert not [secret for secret in (GOOD, TOKEN, SHORT) if secret in refused]


def test_nothing_is_open_to_a_network_without_a_key() -> None:
    assert [
        host for host in EXPOSED for token in TOKENS.values() if refusal(host, [], token) is None
    ] == []


def test_a_long_key_may_end_in_padding() -> None:
    assert refusal("0.0.0.0", [parted("c2VjcmV0LXNlY3JldA==")], None) is None
