"""The types of the proxy's settings: each one parses the text of a variable or flag and checks it.

In a variable, the items of a list are separated by spaces, tabs or line breaks. A ValueError names
what is wrong; the caller adds the names of the flag and of the variable.
"""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from proxy.access.limits import read_limit
from proxy.edge.head import is_host
from proxy.edge.origins import ANY_ORIGIN, read_origin
from proxy.webhooks.signature import read_secret
from proxy.webhooks.url_policy import Allowed
from proxy.wire.frames import ID_PATTERN
from proxy.wire.secret_file import read_secret as read_one
from proxy.wire.secret_file import read_secrets as read_all

MEMORY = "memory:"
SQLITE = "sqlite:///"
PORT_MAX = 65535
SCHEMES_WITHOUT_PAGES = ("about", "blob", "data", "file", "ftp", "ws", "wss")
_ENDPOINT = re.compile(ID_PATTERN)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ASCII_BLANKS = " \t\r\n"
_KEY_SEPARATOR = re.compile(f"[{_ASCII_BLANKS}]+")


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


def _keys(value: Any) -> Any:
    """Split a variable into keys; an empty variable is one empty key, which is rejected later.

    A variable that is set to an empty value is a missing key, not a request for none. Other blanks
    than those of ASCII are not separators: they come from a paste, and are rejected later.
    """
    return _KEY_SEPARATOR.split(value.strip(_ASCII_BLANKS)) if isinstance(value, str) else value


def _keys_in(path: Any) -> Any:
    """Return the keys in a file. An empty path is a ValueError: a missing file, not "no keys"."""
    if not isinstance(path, str | Path):
        return path
    return [SecretStr(key) for key in read_all(_named(path))]


def _secret_in(path: Any) -> Any:
    return SecretStr(read_one(_named(path))) if isinstance(path, str | Path) else path


def _named(path: str | Path) -> Path:
    if not str(path):
        raise ValueError("the path is empty; set it to the path of a file, or unset it")
    return Path(path)


def _endpoints(value: list[str]) -> list[str]:
    for text in value:
        if not _ENDPOINT.fullmatch(text.partition("=")[0]):
            raise ValueError(f"{text!r}: an endpoint id has 1 to 80 letters, digits, '-' and '_'")
    return value


def _store(value: str) -> str:
    is_file = value.startswith(SQLITE) and value != SQLITE
    if value not in ("", MEMORY) and not is_file:
        raise ValueError(f"{value!r}: use {SQLITE}PATH or {MEMORY}")
    return value


def _origins(value: list[str]) -> list[str]:
    """Return the origins in the form that browsers send, because CORS compares strings."""
    return [_origin(text) for text in value]


def _origin(text: str) -> str:
    """Return an origin as browsers write it. Raises ValueError for one that they never send."""
    if text in (ANY_ORIGIN, "null"):
        return text
    origin = read_origin(text.removesuffix("/"))
    if origin is None:
        raise ValueError(
            f"{text!r}: an origin is SCHEME://HOST or SCHEME://HOST:PORT in ASCII, without a path"
            f" and without wildcards, or {ANY_ORIGIN}"
        )
    if origin.scheme in SCHEMES_WITHOUT_PAGES:
        raise ValueError(f"{text!r}: no web page has the scheme {origin.scheme}; use http or https")
    if origin.port is not None and not 0 < origin.port <= PORT_MAX:
        raise ValueError(f"{text!r}: a port is a number from 1 to {PORT_MAX}")
    return str(origin._replace(host=_host(text, origin.host)))


def _host(text: str, host: str) -> str:
    """Return a host as browsers write it: they rewrite addresses, such as 127.1."""
    address = host.strip("[]")
    # Browsers read every host that ends in a number as an IPv4 address.
    if host == address and not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return host
    try:
        written = ip_address(address).compressed
    except ValueError:
        raise ValueError(f"{text!r}: {address} is not an IP address in its usual form") from None
    return written if host == address else f"[{written}]"


def _webhook_secret(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        read_secret(value.get_secret_value())
    return value


def _receivers(value: list[str]) -> list[str]:
    Allowed.read(value)
    return value


def _limits(value: list[str]) -> list[str]:
    for text in value:
        read_limit(text)
    return value


def _host_names(value: list[str]) -> list[str]:
    for text in value:
        if not is_host(text):
            raise ValueError(f"{text!r}: use a host name or an address, without a port")
    return value


ApiKeys = Annotated[list[SecretStr], NoDecode, BeforeValidator(_keys)]
ApiKeysInFile = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_keys_in)]
TokenInFile = Annotated[SecretStr | None, BeforeValidator(_secret_in)]
WebhookSecret = Annotated[SecretStr | None, AfterValidator(_webhook_secret)]
WebhookSecretInFile = Annotated[
    SecretStr | None, BeforeValidator(_secret_in), AfterValidator(_webhook_secret)
]
EndpointIds = Annotated[list[str], NoDecode, BeforeValidator(_words), AfterValidator(_endpoints)]
Store = Annotated[str, AfterValidator(_store)]
CorsOrigins = Annotated[list[str], NoDecode, BeforeValidator(_words), AfterValidator(_origins)]
Receivers = Annotated[list[str], NoDecode, BeforeValidator(_words), AfterValidator(_receivers)]
Limits = Annotated[list[str], NoDecode, BeforeValidator(_words), AfterValidator(_limits)]
HostNames = Annotated[list[str], NoDecode, BeforeValidator(_words), AfterValidator(_host_names)]
LogLevel = Literal["debug", "info", "warning", "error"]
