"""The receiver of a webhook."""

import re

_RECEIVER = re.compile(r"(https?)://(?:[^/?#\\@]*@)?([a-z0-9._-]+|\[[0-9a-f:.]+\])", re.IGNORECASE)


def receiver(webhook: str | None) -> str:
    """Return the scheme and host of a webhook URL, or an empty string if the text has none.

    The other parts of a URL may contain secrets, so they must not be logged.
    """
    found = _RECEIVER.match(webhook or "")
    return "" if found is None else f"{found[1]}://{found[2]}".lower()
