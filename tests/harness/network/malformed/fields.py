"""Malformed header fields: names, values, line ends, number, size, duplicate fields."""

from collections.abc import Iterator

from harness.network.malformed.case import JOB, LOCAL, Case, asks, head, post, shown

HOSTS = (
    *(
        b"",
        b" ",
        b"a/health?x=",
        b"localhost/",
        b"localhost?x",
        b"localhost#x",
        b"localhost\\",
        b"a b",
        b"a@b",
    ),
    *(
        b"user:word@localhost",
        b"http://localhost",
        b"[::1",
        b"::1",
        b"[::1]x",
        b"[::g]",
        b"[]",
        b"[::1%25lo]",
    ),
    *(
        b"localhost:99999",
        b":80",
        b"localhost:-1",
        b"localhost:8x",
        b"localhost:80:80",
        b"localhost: 80",
    ),
    *(
        b"localhost, localhost",
        b"localhost,other",
        b"local\x00host",
        b"local\thost",
        b"localhost\x7f",
        b"localh\xc3\xb6st",
    ),
    *(
        b"<localhost>",
        b"localhost;x",
        b'"localhost"',
        b"local%00host",
        b"*",
        b"a" * 300,
        b"localhost:" + b"0" * 300,
    ),
    *(
        b"attacker.example",
        b"localhost.attacker.example",
        b"127.0.0.1.attacker.example",
        b"0.0.0.0",
        b"10.0.0.1",
    ),
    *(b"2130706433", b"127.1", b"0x7f.0.0.1"),
)
"""The last two lines are valid names, but a proxy without keys does not accept them."""
NAMES = (
    *(
        b"X Y",
        b"X\t",
        b"X ",
        b"",
        b"X\x00",
        b"X\x01",
        b"X\x7f",
        b"X(",
        b"X/Y",
        b"X@Y",
        b"X[",
        b'"X"',
        b"X\xc3\xa9",
    ),
    *(b"X\r", b"\xa0X", b"X,Y", b"X;Y", b"X=Y", b"X?", b"X\\Y", b"{X}"),
)
VALUES = (
    b"\x00",
    b"a\x00b",
    b"a\rb",
    b"a\r",
    b"\rb",
    b"a\x01b",
    b"a\x7fb",
    b"a\x0bb",
    b"a\x1bb",
    b"\x08",
)
CODINGS = (
    b"gzip",
    b"deflate",
    b"br",
    b"zstd",
    b"x-gzip",
    b"compress",
    b"gzip, identity",
    b"identity, gzip",
    b"none",
)


def hosts() -> Iterator[Case]:
    """Host fields that are malformed, repeated, or name another host."""
    for host in HOSTS:
        yield Case(f"host {shown(host)}", head(b"GET /livez HTTP/1.1", b"Host: " + host))
    yield Case("no host", head(b"GET /livez HTTP/1.1"))
    yield Case(
        "no host, but another's", head(b"GET /livez HTTP/1.1", b"X-Forwarded-Host: localhost")
    )
    yield Case("two hosts", asks(LOCAL))
    yield Case("two different hosts", asks(b"Host: 127.0.0.1"))
    yield Case("two hosts, the second in other letters", asks(b"hOST: other"))
    yield Case("space before the host's colon", head(b"GET /livez HTTP/1.1", b"Host : localhost"))
    yield Case(
        "host in two lines", head(b"GET /livez HTTP/1.1", b"Host: localhost", b" .attacker.example")
    )


def names() -> Iterator[Case]:
    """Field names that are not tokens."""
    for name in NAMES:
        yield Case(f"name {shown(name)}", asks(name + b": y"))
    yield Case("no colon", asks(b"X"))
    yield Case("space before the first name", head(b"GET /livez HTTP/1.1", b" X: y", LOCAL))


def values() -> Iterator[Case]:
    """Field values with invalid characters."""
    for value in VALUES:
        yield Case(f"value {shown(value)}", asks(b"X: " + value))
    yield Case("value in two lines", asks(b"X: a", b" b"))
    yield Case("value in two lines, with a tab", asks(b"X: a", b"\tb"))
    yield Case("a line of spaces", asks(b"X: a", b"  "))


def ends() -> Iterator[Case]:
    """Lines with invalid ends."""
    whole = asks(b"X: y")
    yield Case("bare LF everywhere", whole.replace(b"\r\n", b"\n"))
    yield Case("bare CR everywhere", whole.replace(b"\r\n", b"\r"), ends=True)
    yield Case("bare LF after the request line", whole.replace(b"\r\n", b"\n", 1))
    yield Case("bare LF after a field", asks(b"X: y\nY: z"))
    yield Case("bare CR after a field", asks(b"X: y\rY: z"))
    yield Case("two CR", whole.replace(b"\r\n", b"\r\r\n"))
    yield Case("LF CR", whole.replace(b"\r\n", b"\n\r"), ends=True)
    yield Case("bare LF ends the head", whole[:-2] + b"\n")
    yield Case("the head is cut", whole[:-2], ends=True)
    yield Case("the head is cut in a name", whole[:-8], ends=True)
    yield Case("half a head and nothing more", whole[:-2])
    yield Case("half a line and nothing more", b"GET /liv")


def sizes() -> Iterator[Case]:
    """Heads that exceed a limit."""
    yield Case("a value of 40 KB", asks(b"X: " + b"y" * 40_000))
    yield Case("a value of 1 MB", asks(b"X: " + b"y" * 1_000_000))
    yield Case("a name of 40 KB", asks(b"X" * 40_000 + b": y"))
    yield Case("101 fields", asks(*(b"X-%d: y" % number for number in range(100))))
    yield Case("20,000 fields", asks(*(b"X-%d: y" % number for number in range(20_000))))
    yield Case("20,000 fields of one letter", asks(*[b"X:"] * 20_000))
    yield Case(
        "40 KB in 80 fields", asks(*(b"X-%d: %b" % (number, b"y" * 500) for number in range(80)))
    )
    yield Case("a cookie of 40 KB", asks(b"Cookie: " + b"a=b; " * 8_000))


def pairs() -> Iterator[Case]:
    """Duplicates of unique fields, and unsupported content codings."""
    length = b"Content-Length: %d" % len(JOB)
    yield Case("two content types", post(length, b"Content-Type: application/json", body=JOB))
    yield Case("two different content types", post(length, b"Content-Type: text/plain", body=JOB))
    keys = (b"Authorization: Bearer a", b"Authorization: Bearer b")
    yield Case("two keys", head(b"GET /v1/models HTTP/1.1", LOCAL, *keys), stays=True)
    yield Case(
        "one key twice", head(b"GET /v1/models HTTP/1.1", LOCAL, keys[0], keys[0]), stays=True
    )
    for coding in CODINGS:
        yield Case(
            f"coding {shown(coding)}", post(length, b"Content-Encoding: " + coding, body=JOB)
        )
    yield Case(
        "two codings",
        post(length, b"Content-Encoding: identity", b"Content-Encoding: gzip", body=JOB),
    )
    yield Case("expects something else", post(length, b"Expect: 200-ok", body=JOB))
    yield Case("expects more than to go on", post(length, b"Expect: 100-continue, x", body=JOB))
