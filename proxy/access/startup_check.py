"""The start-up check of access: the proxy does not start if anyone could reach it without a key.

A pure function of the listening address, the keys and the worker token. The user that the process
runs as, the data directory and the models make no difference.
"""

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address

from proxy.wire.secret_file import unsendable_character

# Applies to keys and the worker token if they can be guessed over a network.
MIN_KEY_CHARACTERS = 8

# A shorter text that ends in `=` is an owner without a key, not a key with base64 padding.
MIN_PADDED_KEY_CHARACTERS = 16


def is_loopback(host: str) -> bool:
    """Return True if an address can be reached from this machine only.

    A name other than localhost may resolve to any address, so the result for it is False.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def refusal(host: str, keys: Sequence[tuple[str, str]], token: str | None) -> str | None:
    """Return the reason why the proxy must not start, or None if it may.

    Args:
        host: address to listen on.
        keys: pairs of an owner, which may be empty, and a key.
        token: worker token; None if the proxy has yet to generate it.

    """
    if any(_is_missing(owner, key) for owner, key in keys):
        return (
            "--api-key-file (PROXY_API_KEY): a key is empty. "
            "Give KEY or OWNER=KEY, or omit the setting to allow access from this machine only."
        )
    if token is not None and not token.strip():
        return (
            "--worker-token-file (PROXY_WORKER_TOKEN): the token is empty. "
            "Give a token, or omit the setting to have one generated."
        )
    if fault := _unsendable(keys, token):
        return fault
    if token is not None and token in [key for _, key in keys]:
        return (
            "--api-key-file (PROXY_API_KEY): a key is also the worker token. "
            "Clients that know it could act as workers. Use different values."
        )
    if len({key for _, key in keys}) < len(set(keys)):
        return (
            "--api-key-file (PROXY_API_KEY): two owners have the same key. "
            "Generate one for each owner, with: openssl rand -hex 24"
        )
    if is_loopback(host):
        return None
    if not keys:
        return (
            f"--host {host} (PROXY_HOST) can be reached by others, and no key is set. "
            "Give --api-key-file PATH (or PROXY_API_KEY), or listen on 127.0.0.1."
        )
    secrets = [key for _, key in keys]
    if token is not None:
        secrets.append(token)
    if min(map(len, secrets)) < MIN_KEY_CHARACTERS:
        return (
            f"--host {host} (PROXY_HOST) can be reached by others, and a key or the worker token is"
            f" shorter than {MIN_KEY_CHARACTERS} characters."
            " Generate one with: openssl rand -hex 24"
        )
    return None


def _is_missing(owner: str, key: str) -> bool:
    if not key.strip():
        return True
    return not owner and key.endswith("=") and len(key) < MIN_PADDED_KEY_CHARACTERS


def _unsendable(keys: Sequence[tuple[str, str]], token: str | None) -> str:
    """Return the reason why a key, an owner or the token cannot be used, or an empty string."""
    for owner, key in keys:
        for name, text in (("an owner", owner), ("a key", key)):
            if position := unsendable_character(text):
                return _unsendable_message("--api-key-file (PROXY_API_KEY)", position, name)
    if position := unsendable_character(token or ""):
        return _unsendable_message(
            "--worker-token-file (PROXY_WORKER_TOKEN)", position, "the token"
        )
    return ""


def _unsendable_message(setting: str, position: int, name: str) -> str:
    return (
        f"{setting}: character {position} of {name} is not a visible ASCII character, and cannot be"
        " sent in a header field. Use a key without blanks, accents and invisible characters."
    )
