"""Malformed request lines: methods, targets and versions."""

from collections.abc import Iterator

from harness.network.malformed.case import LOCAL, Case, asks, get, head, shown

METHODS = (
    *(
        b"get",
        b"GeT",
        b"G@T",
        b"GET\x00",
        b"\x00GET",
        b"G\tET",
        b"\xc7ET",
        b"GET:",
        b"XYZZY",
        b"M" * 20_000,
    ),
    *(b"PRI", b"BREW", b'"GET"', b"GET,", b"GETGET"),
)
KNOWN = (
    b"DELETE",
    b"PUT",
    b"PATCH",
    b"TRACE",
    b"PROPFIND",
    b"LOCK",
    b"MKCOL",
    b"PURGE",
    b"REPORT",
    b"POST",
    b"SOURCE",
)
"""Methods that parsers know, but that `/livez` does not accept."""
VERSIONS = (
    *(
        b"HTTP/0.9",
        b"HTTP/1.2",
        b"HTTP/1.9",
        b"HTTP/2.0",
        b"HTTP/3.0",
        b"HTTP/9.9",
        b"HTTP/1.10",
        b"HTTP/11.1",
    ),
    *(
        b"HTTP/1",
        b"HTTP/1.",
        b"HTTP/.1",
        b"HTTP/1.1.1",
        b"HTTP/-1.1",
        b"HTTP/1,1",
        b"HTTP/01.1",
        b"HTTP/1.x",
    ),
    *(b"http/1.1", b"HTTP /1.1", b"HTTP/ 1.1", b"HTTP\\1.1", b"HTTPS/1.1", b"HTTP1.1", b"HTP/1.1"),
    *(b"ICE/1.0", b"HTTP/1.1 x", b"HTTP/1.1\x00", b"HTTP/1.1\x0b", b"HTTP/1.1, HTTP/1.0"),
)
TARGETS = (
    *(b"http://attacker.example/livez", b"http:///livez", b"http://x@localhost/livez"),
    *(b"http://localhost/livez#x", b"http:/localhost/livez", b"ws://localhost/livez"),
    *(
        b"localhost:80",
        b"localhost/livez",
        b"livez",
        b"*",
        b"?x=1",
        b"#x",
        b"%2flivez",
        b"\\livez",
        b"file:///livez",
    ),
    *(
        b"/livez\x80",
        b"/livez\xc3\xa9",
        b"/livez?\xff",
        b"/livez\x00",
        b"/livez\x01",
        b"/livez\x7f",
        b"/livez#x",
    ),
    *(b"/livez?x\x00", b"/livez\t", b"/live z", b"/livez\r", b"/livez\x0b", b"/" + b"a" * 40_000),
    *(b"/livez?" + b"a" * 40_000, b"/livez?" + b"&a=b" * 10_000),
)
ELSEWHERE = (
    *(
        b"/a/%2e%2e/%00/b",
        b"/../livez",
        b"/./livez",
        b"/a/../livez",
        b"/livez/../livez",
        b"//livez",
        b"/livez//",
    ),
    *(
        b"/livez/",
        b"/livez%00",
        b"/livez%0d%0aX:%20y",
        b"/livez;x=1",
        b"/%2flivez",
        b"/%c0%aflivez",
        b"/LIVEZ",
    ),
    *(
        b"/livez.json",
        b"//:@/livez@",
        b"/\\livez",
        b"/livez%20",
        b"/%",
        b"/livez%",
        b"/%zz",
        b"/livez%3fx",
        b"/.%2flivez",
    ),
    *(b"/v2/default/health%00", b"/v2/%2e%2e/livez", b"/v2//health", b"/v2/default/Health"),
)
"""Well-formed targets that do not exist."""


def methods() -> Iterator[Case]:
    """Malformed or unsupported methods."""
    for method in METHODS:
        yield Case(f"method {shown(method)}", head(b"%b /livez HTTP/1.1" % method, LOCAL))
    for method in KNOWN:
        yield Case(
            f"method {shown(method)}", head(b"%b /livez HTTP/1.1" % method, LOCAL), stays=True
        )
    for target in (b"/livez", b"/v1/models", b"localhost:80", b"http://localhost/livez", b"*"):
        yield Case(f"CONNECT {shown(target)}", head(b"CONNECT %b HTTP/1.1" % target, LOCAL))
    yield Case("CONNECT and a request behind it", head(b"CONNECT /livez HTTP/1.1", LOCAL) + asks())
    yield Case("OPTIONS *", head(b"OPTIONS * HTTP/1.1", LOCAL))
    yield Case(
        "HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    )


def versions() -> Iterator[Case]:
    """Malformed or unsupported versions."""
    for version in VERSIONS:
        yield Case(f"version {shown(version)}", head(b"GET /livez " + version, LOCAL))
    yield Case("version RTSP/1.0", head(b"GET /livez RTSP/1.0", LOCAL), odd=True)
    yield Case("no version", head(b"GET /livez", LOCAL))
    yield Case("HTTP/0.9", b"GET /livez\r\n\r\n")
    yield Case("HTTP/0.9 and nothing more", b"GET /livez\r\n", ends=True)


def targets() -> Iterator[Case]:
    """Targets in another form, with invalid characters, or too long."""
    for target in TARGETS:
        yield Case(f"target {shown(target)}", get(target))
    for target in ELSEWHERE:
        yield Case(f"target {shown(target)}", get(target), stays=True)


def spaces() -> Iterator[Case]:
    """Request lines with invalid separators."""
    for line in (
        *(b"GET\t/livez\tHTTP/1.1", b" GET /livez HTTP/1.1"),
        *(
            b"GET /livez HTTP/1.1 ",
            b"GET/livez HTTP/1.1",
            b"GET  HTTP/1.1",
            b"GET HTTP/1.1",
            b"GET",
            b"/livez",
        ),
        *(
            b"GET /livez\rHTTP/1.1",
            b"GET /livez HTTP/1.1\rX: y",
            b"GET\x0b/livez HTTP/1.1",
            b"GET /livezHTTP/1.1",
        ),
        *(
            b"HTTP/1.1 200 OK",
            b"\xef\xbb\xbfGET /livez HTTP/1.1",
            b"{}",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03",
        ),
    ):
        yield Case(f"line {shown(line)}", head(line, LOCAL))
    for line in (b"GET  /livez HTTP/1.1", b"GET /livez  HTTP/1.1"):
        yield Case(f"line {shown(line)}", head(line, LOCAL), odd=True)
    yield Case("line in two", b"GET /livez\nHTTP/1.1\r\nHost: localhost\r\n\r\n")
