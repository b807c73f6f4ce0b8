"""The package sources configured for pip, passed on to uv, which does not read pip's settings.

The sources are pip's configuration files and the PIP_* variables.
"""

import configparser
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# A later section overrides an earlier one, as for `pip install`.
SECTIONS = ("global", "install")
# Through requests, pip uses these variables if it has no `cert`.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})


@dataclass(frozen=True, slots=True)
class PipSettings:
    """pip's settings for package sources. An `index_url` of None is the installer's default."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    cert: str | None = None
    client_cert: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    proxy: str | None = None
    timeout: str | None = None


def config_files(environ: Mapping[str, str], home: Path, prefix: Path) -> list[Path]:
    """Return pip's configuration files in ascending priority; PIP_CONFIG_FILE is the last one.

    If that is the null device, no file is read.
    """
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    files = [Path(place) / "pip" / "pip.conf" for place in reversed(_xdg_directories(environ))]
    files.append(Path("/etc/pip.conf"))
    files.append(home / ".pip" / "pip.conf")
    if sys.platform == "darwin":
        files.insert(0, Path("/Library/Application Support/pip/pip.conf"))
        files.append(home / "Library" / "Application Support" / "pip" / "pip.conf")
    files.append(Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf")
    files.append(prefix / "pip.conf")
    if named:
        files.append(Path(named))
    return files


def _xdg_directories(environ: Mapping[str, str]) -> list[str]:
    places = [place for place in environ.get("XDG_CONFIG_DIRS", "").split(":") if place]
    return places or ["/etc/xdg"]


def read(environ: Mapping[str, str], files: Iterable[Path]) -> PipSettings:
    """Return the settings that `pip install` would use: the files in order, then the variables."""
    options: dict[str, str] = {}
    for path in files:
        options |= _file_options(path)
    variables = {
        name: value for name, value in environ.items() if name.startswith("PIP_") and value
    }
    options |= {_key(name.removeprefix("PIP_")): value for name, value in variables.items()}
    ca_bundle = next((environ[name] for name in CA_VARIABLES if environ.get(name)), None)
    return PipSettings(
        index_url=options.get("index-url") or options.get("pypi-url"),
        extra_index_urls=tuple(options.get("extra-index-url", "").split()),
        find_links=tuple(options.get("find-links", "").split()),
        no_index=options.get("no-index", "").lower() in TRUE,
        cert=options.get("cert") or ca_bundle,
        client_cert=options.get("client-cert"),
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        proxy=options.get("proxy"),
        timeout=options.get("timeout") or options.get("default-timeout"),
    )


def _file_options(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        sys.exit(f"{path}: this configuration file of pip cannot be read: {error}")
    options: dict[str, str] = {}
    for section in SECTIONS:
        if parser.has_section(section):
            options |= {_key(name): value for name, value in parser.items(section) if value}
    return options


def _key(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def for_uv(
    settings: PipSettings, environ: Mapping[str, str], *, system_certificates: bool
) -> dict[str, str]:
    """Return the variables with which uv uses pip's sources, except those that `environ` sets."""
    from_pip: dict[str, str | None] = {
        "UV_DEFAULT_INDEX": settings.index_url,
        "UV_EXTRA_INDEX_URL": " ".join(settings.extra_index_urls),
        "UV_FIND_LINKS": ",".join(settings.find_links),
        "UV_NO_INDEX": "1" if settings.no_index else None,
        # pip takes the best version of all indexes; uv stops at the first index that has the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match" if settings.extra_index_urls else None,
        "UV_INSECURE_HOST": " ".join(settings.trusted_hosts),
        "UV_HTTP_TIMEOUT": settings.timeout,
        "UV_SYSTEM_CERTS": "1" if system_certificates and not settings.cert else None,
        "SSL_CLIENT_CERT": settings.client_cert,
        "HTTP_PROXY": settings.proxy,
        "HTTPS_PROXY": settings.proxy,
    }
    variables = {name: value for name, value in from_pip.items() if value and name not in environ}
    if settings.cert:
        variables["SSL_CERT_FILE"] = settings.cert
    if "UV_INDEX" in environ or "UV_INDEX_URL" in environ:
        variables.pop("UV_DEFAULT_INDEX", None)
    return variables
