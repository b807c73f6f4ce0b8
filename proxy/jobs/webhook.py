"""The address of the receiver of a webhook."""

import re

_ADDRESS = re.compile(
    r"(https?)://(?:[^/?#\\@]*@)?([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4}(?![^/?# ]))?",
    re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def receiver_address(webhook: str | None) -> str:
    """Return scheme, host and port of a webhook URL, or an empty string if the text has none.

    The default port of the scheme is omitted. The other parts of a URL may contain secrets, so they
    must not be logged.
    """
    found = _ADDRESS.match(webhook or "")
    if found is None:
        return ""
    scheme, host, port = found.groups(default="")
    if port == _DEFAULT_PORTS[scheme.lower()]:
        port = ""
    return f"{scheme}://{host}{port}".lower()
