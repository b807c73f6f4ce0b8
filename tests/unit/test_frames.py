"""The worker protocol: what is no frame is refused, and an older side can speak with a newer one."""

import msgspec
import pytest

from proxy.wire.frames import BadFrameError, Chunk, Job, decode_to_proxy, decode_to_worker, encode


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00",
        b"hello",
        msgspec.msgpack.encode({"kind": "chunk"}),
        msgspec.msgpack.encode([[99, "a", 1]]),
        msgspec.msgpack.encode([[14, "a", "one", b"x"]]),
        msgspec.msgpack.encode([[14, "a", 1]]),
        encode([Job("a", 1, "POST", "/", "application/json", 0)]),
        b"\x91" * 100_000,
    ],
    ids=["empty", "number", "text", "map", "unknown tag", "wrong type", "too short", "other direction", "deep"],
)
def test_what_is_no_frame_is_refused(message: bytes) -> None:
    with pytest.raises(BadFrameError):
        decode_to_proxy(message)


def test_a_newer_side_may_have_added_fields() -> None:
    newer = msgspec.msgpack.encode([[14, "a", 1, b"x", False, "a field of tomorrow"]])
    assert decode_to_proxy(newer) == [Chunk("a", 1, b"x")]


def test_an_older_side_may_lack_the_last_fields() -> None:
    older = msgspec.msgpack.encode([[1, "a", 1, "POST", "/v1/completions", "application/json", 2]])
    assert decode_to_worker(older) == [Job("a", 1, "POST", "/v1/completions", "application/json", 2, light=False)]
