"""The worker protocol: invalid frames are rejected, and versions are compatible."""

import re
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.channel.native.connection import head_fault, run_end
from proxy.channel.native.validation import WorkerRefusedError, check_hello
from proxy.wire.frames import (
    BadFrameError,
    Chunk,
    Credit,
    End,
    Head,
    Heartbeat,
    Hello,
    Hold,
    Job,
    Log,
    Model,
    Output,
    decode_to_proxy,
    decode_to_worker,
    encode,
)


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
        b"\x91\x92\x10\xa1\xff",
        b"\xdd\xff\xff\xff\xff\x91\x0c",
        b"\xdc\xff\xff" + b"\x91\x0c" * 65_535,
    ],
    ids=[
        "empty",
        "number",
        "text",
        "map",
        "unknown tag",
        "wrong type",
        "too short",
        "other direction",
        "deep",
        "not utf-8",
        "declared number of frames",
        "actual number of frames",
    ],
)
def test_an_invalid_message_is_rejected(message: bytes) -> None:
    with pytest.raises(BadFrameError):
        decode_to_proxy(message)


def test_fields_of_a_newer_peer_are_ignored() -> None:
    newer = msgspec.msgpack.encode([[14, "a", 1, b"x", False, "a field of tomorrow"]])
    assert decode_to_proxy(newer) == [Chunk("a", 1, b"x")]


def test_missing_fields_of_an_older_peer_have_defaults() -> None:
    older = msgspec.msgpack.encode([[1, "a", 1, "POST", "/v1/completions", "application/json", 2]])
    assert decode_to_worker(older) == [
        Job("a", 1, "POST", "/v1/completions", "application/json", 2, light=False)
    ]


class EarlierHello(msgspec.Struct, array_like=True, tag=10):
    """A `Hello` before it had an instance."""

    protocol: int
    worker: str
    engine: str
    models: list[Model] = []
    holds: list[Hold] = []


def test_a_hello_with_an_instance_is_valid_for_an_older_proxy() -> None:
    message = encode([Hello(1, "w", "e", [], [Hold("j", 1, 2)], "instance")])
    older = msgspec.msgpack.Decoder(list[EarlierHello])
    assert older.decode(message) == [EarlierHello(1, "w", "e", [], [Hold("j", 1, 2)])]


def test_the_hello_of_an_older_worker_has_no_instance() -> None:
    message = msgspec.msgpack.encode([EarlierHello(1, "w", "e", [], [Hold("j", 1, 2)])])
    assert decode_to_proxy(message) == [Hello(1, "w", "e", [], [Hold("j", 1, 2)], "")]


@pytest.mark.parametrize("instance", ["a b", "x" * 81, "\n"])
def test_an_invalid_instance_is_refused(instance: str) -> None:
    with pytest.raises(WorkerRefusedError):
        check_hello(Hello(1, "w", "e", [], [], instance))


SEEDS = [
    encode(
        [
            Hello(1, "w", "e", [Model("m", b"{}")], [Hold("j", 1, 2)], "i"),
            Credit(1, 2),
            Heartbeat(),
            Log("x"),
        ]
    ),
    encode(
        [
            Head("j", 1, 200, "x"),
            Chunk("j", 1, b"x", more=True),
            Output("j", 1, b"1"),
            End("j", 1, "completed"),
        ]
    ),
]


@given(st.sampled_from(SEEDS), st.data())
def test_changed_bytes_are_valid_frames_or_rejected(seed: bytes, data: st.DataObject) -> None:
    """Any input gives frames or a `BadFrameError`."""
    message = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(message)))
        message[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    _check_frames(bytes(message))


@given(
    st.lists(
        st.lists(st.integers(0, 20) | st.text() | st.binary() | st.floats() | st.lists(st.none()))
    )
)
def test_any_msgpack_is_valid_frames_or_rejected(message: list[object]) -> None:
    _check_frames(msgspec.msgpack.encode(message))


def _check_frames(message: bytes) -> None:
    with suppress(BadFrameError):
        for frame in decode_to_proxy(message):
            if isinstance(frame, Hello):
                with suppress(WorkerRefusedError):
                    check_hello(frame)
            elif isinstance(frame, Head) and not head_fault(frame):
                assert re.fullmatch(r"[ -~]*", frame.content_type)
            elif isinstance(frame, End):
                end = run_end(frame)
                assert end.ending.name.lower() == frame.ending
                assert end.error is None or end.error.code


def test_the_routes_of_a_model_are_optional() -> None:
    """An older worker does not send them, and an older proxy ignores them."""
    old = msgspec.msgpack.encode([[10, 1, "w", "e", [["m", b"{}", True]]]])
    hello = decode_to_proxy(old)[0]
    assert isinstance(hello, Hello)
    assert hello.models == [Model("m", b"{}", True, [])]
    new = encode([Hello(1, "w", "e", [Model("m", b"{}", True, ["/a"])])])
    fields = msgspec.msgpack.decode(new)[0][4][0]
    assert fields == ["m", b"{}", True, ["/a"]]
