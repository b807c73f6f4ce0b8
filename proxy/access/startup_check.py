"""Who can reach the proxy, and why it does not start where that would be anybody: a pure decision.

Whether it runs as root, where its jobs are and what it serves make no difference to it.
"""

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address

SHORTEST_KEY = 8  # of what others can guess at over a network
SHORTEST_PADDED = 16  # a shorter `OWNER=` is an owner whose key is missing, not a key that ends in base64's padding


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. A name other than localhost may lead anywhere."""
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def refusal(host: str, keys: Sequence[tuple[str, str]], token: str | None) -> str | None:
    """Why the proxy must not start with these keys, each with its owner or "", and this worker token; None if it may.

    A token of None is one that the proxy is still to make.
    """
    if any(_is_missing(owner, key) for owner, key in keys):
        return (
            "--api-key-file (PROXY_API_KEY): a key is empty. "
            "Give KEY or OWNER=KEY, or nothing at all on this machine alone."
        )
    if token is not None and not token.strip():
        return "--worker-token-file (PROXY_WORKER_TOKEN): it is empty. Give a token, or nothing at all: then one is made."
    if token is not None and token in [key for _, key in keys]:
        return (
            "--api-key-file (PROXY_API_KEY): a key is also the worker token. "
            "Clients that know it could pose as workers."
        )
    if len({key for _, key in keys}) < len(set(keys)):
        return (
            "--api-key-file (PROXY_API_KEY): two owners have the same key. "
            "Make one of their own for each, with: openssl rand -hex 24"
        )
    if is_loopback(host):
        return None
    if not keys:
        return (
            f"--host {host} can be reached by others, and no key is set. "
            "Give --api-key-file PATH (or PROXY_API_KEY), or listen on 127.0.0.1."
        )
    if (
        min(
            len(secret)
            for secret in (*(key for _, key in keys), *([] if token is None else [token]))
        )
        < SHORTEST_KEY
    ):
        return (
            f"--host {host} can be reached by others, and a key or the worker token is shorter than {SHORTEST_KEY} "
            "characters. Make one with: openssl rand -hex 24"
        )
    return None


def _is_missing(owner: str, key: str) -> bool:
    return not key.strip() or (not owner and key.endswith("=") and len(key) < SHORTEST_PADDED)
