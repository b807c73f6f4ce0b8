"""Who is told by a webhook."""

import re

_RECEIVER = re.compile(r"(https?)://(?:[^/?#\\@]*@)?([a-z0-9._-]+|\[[0-9a-f:.]+\])", re.IGNORECASE)


def receiver(webhook: str | None) -> str:
    """Scheme and host, of any text; empty if there is none. The rest may hold secrets, and is in no log."""
    found = _RECEIVER.match(webhook or "")
    return "" if found is None else f"{found[1]}://{found[2]}".lower()
