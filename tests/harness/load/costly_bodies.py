"""Bodies whose parsing costs a careless receiver much more than they cost their sender."""

MB = 1024 * 1024
BIG = 18 * MB
# The number of values, slightly below the limit for a body.
MOST = 2_990_000


def around(value: bytes, field: bytes = b"input") -> bytes:
    """Return a body with this field, for a model that does not exist."""
    return b'{"model":"nobody\'s","%b":%b}' % (field, value)


def filled(unit: bytes, size: int = BIG) -> bytes:
    """Return a list with as many copies of `unit` as fit."""
    return b"[%b1]" % (unit * (size // len(unit)))


def bodies() -> dict[str, bytes]:
    """Return the bodies by name. Those that are valid JSON may also be accepted."""
    digits = b"1" * MB
    return {
        "lists": around(filled(b"[],")),
        "lists in lists": around(filled(b"[[[[[[]]]]]],")),
        "objects": around(filled(b'{"k":[]},')),
        "numbers": around(filled(b"0,")),
        "strings": around(filled(b'"",')),
        "as many numbers as may be": b'{"input":[%b1],"model":"%b"}'
        % (b"-1," * MOST, b"a" * (BIG - 3 * MOST)),
        "as many keys as may be": around(b"{" + b'"k":1,' * (MOST // 2) + b'"k":1}'),
        "as many escapes as may be": around(b'"' + b"\\u00e9" * MOST + b'"'),
        "as many blanks as may be": around(b"1" + b" " * 2 * MOST),
        "deep": around(b"[" * 10_000_000),
        "deep and whole": around(b"[" * 9_000_000 + b"]" * 9_000_000),
        "deep objects": around(b'{"k":' * 3_000_000),
        "wide characters": around(b'"' + b"a" * BIG + "\U0001f600".encode() + b'"'),
        "blanks": b" " * BIG,
        "many keys": b"{" + b'"k":1,' * (BIG // 6) + b'"input":1,"model":"nobody\'s"}',
        "a long key": b'{"' + b"k" * BIG + b'":1,"input":1,"model":"nobody\'s"}',
        "an escaped key": b'{"' + b"\\u00e9" * (BIG // 6) + b'":1,"input":1,"model":"nobody\'s"}',
        "not a number": around(b"NaN"),
        "infinity": around(b"[Infinity,-Infinity]"),
        "too large a number": around(b"1e999"),
        "a million digits": around(digits),
        "a raw surrogate": around(b'"\xed\xa0\x80"'),
        "an escaped surrogate": around(b'"\\ud800"'),
        "half a pair": around(b'"\\udc00\\ud800"'),
        "a raw nul": around(b'"\x00"'),
        "an escaped nul": around(b'"\\u0000"'),
        "utf-16": around(b"1").decode().encode("utf-16"),
        "utf-32": around(b"1").decode().encode("utf-32"),
        "a byte order mark": b"\xef\xbb\xbf" + around(b"1"),
        "two inputs": b'{"input":1,"model":"x","input":2,"model":"nobody\'s"}',
        "a long model": b'{"input":1,"model":"%b"}' % (b"m" * BIG),
        "a long model of wide characters": b'{"input":1,"model":"%b"}'
        % ("\U0001f600".encode() * (BIG // 4)),
        "a model with a nul": b'{"input":1,"model":"\\u0000"}',
        "a model of an escaped surrogate": b'{"input":1,"model":"\\ud800"}',
        "a model that is a list": b'{"input":1,"model":%b}' % filled(b"[],"),
        "a stream that is a list": b'{"input":1,"model":"nobody\'s","stream":%b}'
        % filled(b"[],", MB),
        "a retired field that is a list": b'{"input":1,"guided_json":%b}' % filled(b"[],", MB),
    }


def options() -> dict[str, bytes]:
    """Return bodies of `run` and `runsync` with invalid options."""
    wrong = [
        b"1.5",
        b"true",
        b"1e3",
        b"1e400",
        b"-1",
        b"9" * 19,
        b"9" * 4_000,
        b"9" * MB,
        b"[]",
        b'"10000"',
    ]
    made = {
        f"ttl {number}": b'{"input":1,"policy":{"ttl":%b}}' % one
        for number, one in enumerate(wrong)
    }
    made |= {
        f"time {number}": b'{"input":1,"policy":{"executionTimeout":%b}}' % one
        for number, one in enumerate(wrong)
    }
    return made | {
        "a priority that is a number": b'{"input":1,"policy":{"lowPriority":1}}',
        "a policy that is a list": b'{"input":1,"policy":%b}' % filled(b"[],"),
        "a long webhook": b'{"input":1,"webhook":"https://example.com/%b"}' % (b"a" * MB),
        "a long webhook of escapes": b'{"input":1,"webhook":"%b"}' % (b"\\u0061" * (BIG // 6)),
        "a webhook of an escaped surrogate": b'{"input":1,"webhook":"https://example.com/\\ud800"}',
        "a webhook with a nul": b'{"input":1,"webhook":"https://example.com/\\u0000"}',
        "a large s3Config": b'{"input":1,"s3Config":{"a":%b}}' % filled(b"[],"),
        "an s3Config that is a list": b'{"input":1,"s3Config":[]}',
        "an s3Config that is not whole": b'{"input":1,"s3Config":{"a":}}',
    }
