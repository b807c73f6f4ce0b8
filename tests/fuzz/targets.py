"""Fuzz targets: a function for each parser of untrusted input, which raises if an invariant fails.

`python targets.py NAME RUNS SECONDS [CORPUS]` runs a target until either limit is reached.
"""

import asyncio
import logging
import re
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import atheris
import structlog

with atheris.instrument_imports(include=["proxy"]):
    import msgspec
    from harness.tools.parsed import Parsed
    from yarl import URL

    from proxy.channel.native.connection import head_fault, run_end
    from proxy.channel.native.validation import WorkerRefusedError, check_hello
    from proxy.channel.runpod.openai import Answer
    from proxy.edge.head import (
        HEAD_MAX_BYTES,
        HEAD_MAX_FIELDS,
        Hosts,
        check_head,
        read_target,
    )
    from proxy.webhooks.addresses import is_public
    from proxy.webhooks.url_policy import Allowed, BadWebhookError, read_url
    from proxy.wire import frames
    from proxy.wire.sse import read_events

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
_loop = asyncio.new_event_loop()
_connections = Parsed(socket.socket())
NONE_ALLOWED = Allowed()
STREAM_REQUEST = b'{"stream": true}'
# A line ends in LF, CR or CRLF, and they may be mixed.
BLANK_LINE_AT_END = re.compile(rb"(?:\r\n?+|\n)(?:\r\n?+|\n)\Z")
CONTENT_TYPE = re.compile(r"[ -~]{0,200}")


def decoder(data: bytes) -> None:
    """A message is decoded into frames with valid fields, or rejected with `BadFrameError`."""
    with suppress(frames.BadFrameError):
        found = frames.decode_to_proxy(data)
        assert len(found) <= frames.MESSAGE_MAX_FRAMES
        # As bytes, because a number that is not a number is not equal to itself.
        encoded = frames.encode(list(found))
        assert frames.encode(list(frames.decode_to_proxy(encoded))) == encoded
        for frame in found:
            if isinstance(frame, frames.Hello):
                with suppress(WorkerRefusedError):
                    check_hello(frame)
                    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", frame.worker)
                    assert all(
                        isinstance(msgspec.json.decode(model.card), dict) for model in frame.models
                    )
            elif isinstance(frame, frames.Head) and not head_fault(frame):
                assert 200 <= frame.status <= 599
                assert CONTENT_TYPE.fullmatch(frame.content_type)
            elif isinstance(frame, frames.End):
                end = run_end(frame)
                is_full = frame.ending == "failed" and frame.retry_after > 0
                assert end.ending.name.lower() == ("full" if is_full else frame.ending)
                assert (end.error is not None) == (frame.ending in {"failed", "lost"})
                assert end.error is None or re.fullmatch(r"[a-z0-9_]+", end.error.code)


def reframer(data: bytes) -> None:
    """The events of a stream do not depend on its division into pieces, and are never split."""
    provider = atheris.FuzzedDataProvider(data)
    sizes = [provider.ConsumeIntInRange(1, 40) for _ in range(provider.ConsumeIntInRange(1, 8))]
    text = provider.ConsumeUnicodeNoSurrogates(1_000).replace("|", "\n\n")
    answer = Answer(STREAM_REQUEST)
    sent = b""
    start = 0
    while start < len(text):
        size = sizes[answer.received % len(sizes)]
        piece = answer.put(msgspec.json.encode(text[start : start + size]))
        assert not piece or BLANK_LINE_AT_END.search(piece)
        sent += piece
        start += size
    rest = answer.finish(b"[]")
    whole = text.encode()
    assert whole.startswith(sent)
    assert rest in (b"", whole[len(sent) :] + b"\n\n")
    assert rest or not whole[len(sent) :].strip()
    assert list(read_events(sent + rest)) == list(read_events(whole))


def webhooks(data: bytes) -> None:
    """An accepted webhook URL has one public host, with every URL parser."""
    text = atheris.FuzzedDataProvider(data).ConsumeUnicodeNoSurrogates(300)
    for prefix in ("", "http://", "https://", "http://example.com", "http://[", "https://1"):
        url = prefix + text
        with suppress(BadWebhookError):
            read = read_url(url, NONE_ALLOWED)
            split = urlsplit(url)
            assert _host(split.hostname) == _host(URL(url).host) == _host(read.raw_host)
            assert split.username is split.password is None
            assert split.port in (None, read.port)
            with suppress(ValueError):
                assert is_public(ip_address(split.hostname or ""))


def _host(text: str | None) -> object:
    """Return a host in the form in which equal hosts are equal: `2311::0` is `2311::`."""
    try:
        return ip_address(text or "")
    except ValueError:
        return (text or "").lower()


def head(data: bytes) -> None:
    """A valid head has one host and one kind of body framing."""
    provider = atheris.FuzzedDataProvider(data)
    names = [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"expect",
        b"upgrade",
        b"authorization",
    ]
    fields = []
    for _ in range(provider.ConsumeIntInRange(0, 6)):
        name = names[provider.ConsumeIntInRange(0, len(names) - 1)]
        fields.append((name, provider.ConsumeBytes(provider.ConsumeIntInRange(0, 30))))
    if provider.ConsumeBool():
        fields.insert(0, (b"host", b"localhost"))
    start = (b"", b"/", b"http://", b"HTTPS://localhost")[provider.ConsumeIntInRange(0, 3)]
    version = ("1.1", "1.0")[provider.ConsumeIntInRange(0, 1)]
    target = start + provider.ConsumeBytes(40)
    if check_head(target, version, fields, Hosts(is_open=True)) is not None:
        return
    given = dict(fields)
    parts = read_target(target)
    assert parts is not None
    assert parts.path.startswith(b"/")
    assert b"#" not in parts.path
    assert version == "1.0" or b"host" in given
    assert len(fields) <= HEAD_MAX_FIELDS
    assert len(target) < HEAD_MAX_BYTES
    once = [name for name, _ in fields if name not in (b"authorization", b"upgrade")]
    assert len(once) == len(set(once))
    host = given.get(b"host") if parts.host is None else parts.host
    assert host is None or re.fullmatch(
        rb"(localhost\.?|127[.0-9]+|\[::1\])(:[0-9]{1,5})?", host, re.IGNORECASE
    )
    assert not (b"content-length" in given and b"transfer-encoding" in given)
    int(given.get(b"content-length", b"0"))


GUARD_METHODS = ("GET", "POST", "HEAD", "CONNECT", "OPTIONS", "PRI", "M-SEARCH")
GUARD_TARGETS = (
    " /v1/models HTTP/1.1",
    " * HTTP/1.1",
    " localhost:80 HTTP/1.1",
    " http://localhost/ HTTP/1.1",
    " http://localhost?x HTTP/1.0",
    " / HTTP/1.0",
)
GUARD_FIELDS = (
    "Connection: Upgrade",
    "Connection: close",
    "Proxy-Connection: upgrade",
    "Upgrade: h2c",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Expect: 100-continue",
    "Content-Length: 3",
    "Transfer-Encoding: chunked",
    "X: y",
)
GUARD_BODIES = (b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"0\r\n\r\n")


def guard(data: bytes) -> None:
    """The responses do not depend on the division of the data, and the protocol never raises."""
    provider = atheris.FuzzedDataProvider(data)
    raw = b"".join(_guard_request(provider) for _ in range(provider.ConsumeIntInRange(1, 3)))
    cuts = sorted(provider.ConsumeIntInRange(0, len(raw)) for _ in range(3))
    pieces = [raw[start:end] for start, end in pairwise([0, *cuts, len(raw)]) if start < end]
    whole, cut = (_loop.run_until_complete(_connections.answer(sent)) for sent in ([raw], pieces))
    assert cut == whole, (pieces, cut, whole)
    assert _connections.connections.size == 0


def _guard_request(provider: Any) -> bytes:
    def one_of(values: Sequence[Any]) -> Any:
        return values[provider.ConsumeIntInRange(0, len(values) - 1)]

    line = one_of(GUARD_METHODS) + one_of(GUARD_TARGETS)
    fields = [one_of(GUARD_FIELDS) for _ in range(provider.ConsumeIntInRange(0, 6))]
    raw = "\r\n".join([line, "Host: localhost", *fields, "", ""]).encode() + bytes(
        one_of(GUARD_BODIES)
    )
    if provider.ConsumeIntInRange(0, 7):
        return raw
    at = provider.ConsumeIntInRange(0, len(raw))
    return raw[:at] + bytes(provider.ConsumeBytes(3)) + raw[at:]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decoder": decoder,
    "reframer": reframer,
    "webhooks": webhooks,
    "head": head,
    "guard": guard,
}


def main() -> None:
    """Run a target; the process ends with an error if an invariant fails."""
    name, runs, seconds = sys.argv[1:4]
    arguments = [
        sys.argv[0],
        f"-runs={runs}",
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=10",
        *sys.argv[4:],
    ]
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
