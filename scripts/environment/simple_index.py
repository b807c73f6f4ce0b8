"""The download of pip's wheel from the configured package index, for a Python without pip."""

import base64
import hashlib
import re
import ssl
import sysconfig
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from .pip_settings import PipSettings

# Releases only, no pre-releases.
PIP_WHEEL = re.compile(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl$")
MIN_PYTHON = re.compile(r">=\s*3\.(\d+)")
# A single failure of the index must not end the set-up.
DOWNLOAD_ATTEMPTS = 3
DEFAULT_TIMEOUT_SECONDS = 30.0
DEBIAN_WHEELS = Path("/usr/share/python-wheels")
# The wheel of pip has 2 MB, and an index page a few hundred KB.
RESPONSE_MAX_BYTES = 32 << 20


class PipUnavailableError(Exception):
    """None of the configured sources has a usable wheel of pip."""


@dataclass(frozen=True, slots=True)
class Link:
    """A file on an index page. It needs Python 3.`least_minor` or newer."""

    url: str
    sha256: str | None
    least_minor: int = 0

    @property
    def version(self) -> tuple[int, ...] | None:
        found = PIP_WHEEL.search(unquote(urlsplit(self.url).path))
        return tuple(int(part) for part in found[1].split(".")) if found else None


class _Page(HTMLParser):
    def __init__(self, base: str) -> None:
        super().__init__()
        self._base = base
        self.links: list[Link] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        href = attributes.get("href")
        if tag != "a" or not href or "data-yanked" in attributes:
            return
        url, fragment = urldefrag(urljoin(self._base, href))
        least = MIN_PYTHON.search(attributes.get("data-requires-python") or "")
        digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        self.links.append(Link(url, digest, int(least[1]) if least else 0))


def page_links(base: str, text: str) -> list[Link]:
    """Return the files on an HTML page of an index or of find-links; `base` is the page's URL."""
    page = _Page(base)
    page.feed(text)
    return page.links


def newest(links: list[Link], minor: int) -> Link | None:
    """Return the newest pip that runs on Python 3.`minor`, or None."""
    usable = [(link.version, link) for link in links if link.version and link.least_minor <= minor]
    return max(usable, key=lambda pair: pair[0])[1] if usable else None


def fetch_pip(settings: PipSettings, minor: int, folder: Path, bundled: Sequence[str] = ()) -> Path:
    """Write the newest wheel of pip to `folder`; return its path. `bundled` has further sources.

    The hash is verified if the index has one. Raises PipUnavailableError or OSError.
    """
    links: list[Link] = []
    problems: list[str] = []
    pages = [_directory(place) for place in (*settings.find_links, *bundled)]
    if not settings.no_index:
        indexes = [index for index in (settings.index_url, *settings.extra_index_urls) if index]
        pages += [_directory(index.rstrip("/") + "/pip") for index in indexes]
    for page in pages:
        try:
            links += _links(page, settings)
        except OSError as error:
            problems.append(f"{_without_user(page)}: {error}")
    link = newest(links, minor)
    if link is None:
        raise PipUnavailableError(
            "\n".join(problems) or "none of the configured sources has a wheel of pip"
        )
    body = _read(link.url, settings)
    if link.sha256 and hashlib.sha256(body).hexdigest() != link.sha256:
        raise PipUnavailableError(
            f"{_without_user(link.url)}: the SHA-256 differs from that of the index"
        )
    wheel = folder / unquote(urlsplit(link.url).path).rpartition("/")[2]
    wheel.write_bytes(body)
    return wheel


def bundled_wheels() -> list[str]:
    """Return the folders in which Python has a wheel of pip for new environments."""
    # Debian's Python does not have the first one.
    standard = Path(sysconfig.get_path("stdlib")) / "ensurepip" / "_bundled"
    return [str(place) for place in (standard, DEBIAN_WHEELS) if place.is_dir()]


def _directory(place: str) -> str:
    url = place if "://" in place else Path(place).absolute().as_uri()
    return url if url.endswith((".html", "/")) else url + "/"


def _links(page: str, settings: PipSettings) -> list[Link]:
    if not page.startswith("file:"):
        return page_links(page, _read(page, settings).decode(errors="replace"))
    path = Path(urllib.request.url2pathname(urlsplit(page).path))
    index = path / "index.html" if path.is_dir() else path
    if index.is_file():
        return page_links(index.as_uri(), index.read_text(encoding="utf-8", errors="replace"))
    return [Link(file.absolute().as_uri(), None) for file in path.glob("pip-*.whl")]


def _read(url: str, settings: PipSettings) -> bytes:
    headers = {"Accept": "text/html, */*;q=0.5"}
    request = urllib.request.Request(_without_user(url), headers=headers)  # noqa: S310 - the user's own index
    parts = urlsplit(url)
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header(
            "Authorization", "Basic " + base64.b64encode(pair.encode()).decode()
        )
    opener = _opener(settings, parts.hostname)
    timeout = float(settings.timeout or DEFAULT_TIMEOUT_SECONDS)
    for attempt in range(DOWNLOAD_ATTEMPTS):
        try:
            with opener.open(request, timeout=timeout) as response:
                return bytes(response.read(RESPONSE_MAX_BYTES))
        except OSError:
            if attempt == DOWNLOAD_ATTEMPTS - 1:
                raise
            time.sleep(attempt + 1)
    raise AssertionError("unreachable")


def _opener(settings: PipSettings, host: str | None) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=settings.cert)
    if host and any(trusted.partition(":")[0] == host for trusted in settings.trusted_hosts):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.client_cert:
        context.load_cert_chain(settings.client_cert)
    proxies = {"http": settings.proxy, "https": settings.proxy} if settings.proxy else None
    return urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context)
    )


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
