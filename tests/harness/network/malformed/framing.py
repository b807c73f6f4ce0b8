"""Malformed body framing: lengths, transfer codings, chunks and trailers."""

from collections.abc import Iterator

from harness.network.malformed.case import JOB, JSON, LOCAL, SMUGGLED, Case, head, post, shown

CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: 11"
WHOLE = b"b\r\n%b\r\n0\r\n\r\n" % JOB
LENGTHS = (
    *(
        b"+11",
        b"-1",
        b"-0",
        b"0x0b",
        b"11,11",
        b"11, 11",
        b"11, 12",
        b"1 1",
        b"1e1",
        b"",
        b" ",
        b"abc",
        b"11;",
        b'"11"',
    ),
    *(
        b"11.0",
        b"_11",
        b"1_1",
        b"\xef\xbc\x91\xef\xbc\x91",
        b"11\x00",
        b"11\x0b",
        b"1\t1",
        b"11a",
        b"1000000000000",
    ),
    *(
        b"18446744073709551627",
        b"4294967307111111111111",
        b"9" * 400,
        b"11 ,",
        b",11",
        b"NaN",
        b"inf",
        b"0b1011",
    ),
)
CODINGS = (
    *(
        b"xchunked",
        b"chunkedx",
        b"chunke",
        b"\x0bchunked",
        b"chunked\x00",
        b"chunked\x0b",
        b'"chunked"',
        b"chunked;q=1",
    ),
    *(
        b"chunked, identity",
        b"chunked, gzip",
        b"identity",
        b"gzip",
        b"gzip, chunked",
        b"chunked, chunked",
        b"",
        b"cow",
    ),
    *(
        b"chunked,",
        b",chunked",
        b"identity, chunked",
        b"chunked chunked",
        b"chun ked",
        b"\xe3\x83\x81chunked",
        b"none",
    ),
)
CHUNK_SIZES = (
    *(
        b"-b",
        b"+b",
        b"0xb",
        b" b",
        b"g",
        b"",
        b"b g",
        b"\x00b",
        b"b\x00",
        b"b\x0b",
        b"_b",
        b"b,",
        b"11\x80",
        b'"b"',
    ),
    *(
        b"fffffffffffffffff",
        b"10000000000000000b",
        b"ffffffffffffffff",
        b"0x",
        b"-0",
        b"b\r",
        b"b\t;\x00",
    ),
)
EXTENSIONS = (b"x\x00", b"x\ny", b"x\ry", b";" * 100_000, b"x=\x7f\n")
TRAILERS = (
    *(
        b"X",
        b"X : y",
        b" X: y",
        b"X: y\x00",
        b"X: y\nY: z",
        b"X: y\rY: z",
        b": y",
        b"X: y\r\n z",
        b"X\x00: y",
    ),
    *(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
)
UNREAD = (
    *(
        b"Host: other",
        b"Authorization: Bearer x",
        b"Content-Type: text/plain",
        b"Content-Encoding: gzip",
    ),
    *(b"X: " + b"y" * 100_000,),
)
"""Ignored trailers: they may be dropped, as long as they do not change anything."""


def lengths() -> Iterator[Case]:
    """Content lengths that are not a number, or more than one number."""
    for length in LENGTHS:
        yield Case(f"length {shown(length)}", post(b"Content-Length: " + length, body=JOB))
    yield Case("two lengths", post(LENGTH, LENGTH, body=JOB))
    yield Case("two different lengths", post(LENGTH, b"Content-Length: 12", body=JOB))
    yield Case("two lengths, the first nothing", post(b"Content-Length: 0", LENGTH, body=JOB))
    yield Case("space before the length's colon", post(b"Content-Length : 11", body=JOB))
    yield Case("length in two lines", post(b"Content-Length: 1", b" 1", body=JOB))
    yield Case("length by another name", post(b"Content_Length: 11", body=JOB))
    yield Case("length after a bare LF", post(b"X: y\nContent-Length: 11", body=JOB))
    yield Case("a body that is cut", post(b"Content-Length: 100", body=JOB), ends=True)
    yield Case("a body that does not come", post(b"Content-Length: 100", body=JOB))
    yield Case("no length", post(body=JOB))


def codings() -> Iterator[Case]:
    """Transfer codings that are not `chunked`, not last, or repeated."""
    for coding in CODINGS:
        yield Case(f"coding {shown(coding)}", post(b"Transfer-Encoding: " + coding, body=WHOLE))
    yield Case("chunked, by two fields", post(CHUNKED, CHUNKED, body=WHOLE))
    yield Case("chunked, then identity", post(CHUNKED, b"Transfer-Encoding: identity", body=WHOLE))
    yield Case("identity, then chunked", post(b"Transfer-Encoding: identity", CHUNKED, body=WHOLE))
    yield Case("space before the coding's colon", post(b"Transfer-Encoding : chunked", body=WHOLE))
    yield Case("coding in two lines", post(b"Transfer-Encoding:", b" chunked", body=WHOLE))
    yield Case("coding after a bare LF", post(b"X: y\nTransfer-Encoding: chunked", body=WHOLE))
    yield Case("coding after a bare CR", post(b"X: y\rTransfer-Encoding: chunked", body=WHOLE))
    yield Case("coding by another name", post(b"Transfer_Encoding: chunked", body=WHOLE))
    yield Case(
        "chunked in HTTP/1.0", head(b"POST /v2/default/run HTTP/1.0", LOCAL, JSON, CHUNKED) + WHOLE
    )


def chunks() -> Iterator[Case]:
    """Chunks with a wrong or malformed length."""
    for size in CHUNK_SIZES:
        yield Case(
            f"chunk size {shown(size)}",
            post(CHUNKED, body=WHOLE.replace(b"b\r\n", size + b"\r\n", 1)),
        )
    for extension in EXTENSIONS:
        body = WHOLE.replace(b"b\r\n", b"b;%b\r\n" % extension, 1)
        yield Case(f"chunk extension {shown(extension)}", post(CHUNKED, body=body))
    extended = b"b;x=%b\r\n" % (b"y" * 100_000)
    yield Case(
        "a chunk extension of 100 KB",
        post(CHUNKED, body=WHOLE.replace(b"b\r\n", extended, 1)),
        odd=True,
    )
    for name, old, new in (
        ("bare LF after a size", b"b\r\n", b"b\n"),
        ("bare CR after a size", b"b\r\n", b"b\r"),
        ("bare LF after a chunk", b"}\r\n", b"}\n"),
        ("nothing after a chunk", b"}\r\n", b"}"),
        ("something else after a chunk", b"}\r\n", b"}XX"),
        ("a chunk too long", b"}\r\n", b"}}\r\n"),
        ("a chunk too short", b"}\r\n", b"\r\n"),
        ("bare LF at the end", b"0\r\n\r\n", b"0\n\n"),
        ("bare LF after the last size", b"0\r\n\r\n", b"0\n\r\n"),
        ("bare LF after the last chunk", b"0\r\n\r\n", b"0\r\n\n"),
        ("something else at the end", b"0\r\n\r\n", b"0\r\nXX"),
        ("a request at the end", b"0\r\n\r\n", b"0\r\n" + SMUGGLED),
    ):
        yield Case(name, post(CHUNKED, body=WHOLE.replace(old, new, 1)))
    yield Case("chunks that are cut", post(CHUNKED, body=WHOLE[:-2]), ends=True)
    yield Case("a chunk that is cut", post(CHUNKED, body=WHOLE[:8]), ends=True)
    yield Case("a chunk that does not come", post(CHUNKED, body=WHOLE[:8]))


def trailers() -> Iterator[Case]:
    """Trailer fields that are malformed, too many, or would change the meaning of the body."""
    for trailer in TRAILERS:
        yield Case(
            f"trailer {shown(trailer)}", post(CHUNKED, body=WHOLE[:-2] + trailer + b"\r\n\r\n")
        )
    for trailer in UNREAD:
        yield Case(
            f"trailer {shown(trailer)}",
            post(CHUNKED, body=WHOLE[:-2] + trailer + b"\r\n\r\n"),
            odd=True,
        )
    many = b"".join(b"X-%d: y\r\n" % number for number in range(20_000))
    yield Case("20,000 trailers", post(CHUNKED, body=WHOLE[:-2] + many + b"\r\n"))
