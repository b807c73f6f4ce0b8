"""The order and the size of frames that leave an outbox."""

import pytest

from proxy.wire.flow import Outbox
from proxy.wire.frames import (
    MESSAGE_BYTES,
    PART_BYTES,
    SOCKET_BYTES,
    Chunk,
    End,
    Frame,
    Head,
    Heartbeat,
    Output,
    decode_to_proxy,
)


def everything(outbox: Outbox) -> list[Frame]:
    """Return all frames, as the peer decodes them."""
    frames: list[Frame] = []
    while (message := outbox.next_message()) is not None:
        assert len(message[0]) <= SOCKET_BYTES
        frames += decode_to_proxy(message[0])
    return frames


def test_frames_of_one_turn_are_sent_in_one_message() -> None:
    outbox = Outbox()
    for job in "abc":
        outbox.put_in_lane(Chunk(job, 1, b"x"))
    message = outbox.next_message()
    assert message is not None
    assert len(decode_to_proxy(message[0])) == 3
    assert outbox.next_message() is None


def test_control_frames_are_sent_first() -> None:
    outbox = Outbox()
    outbox.put_in_lane(Chunk("a", 1, b"x" * MESSAGE_BYTES * 3))
    outbox.put(Heartbeat())
    assert isinstance(everything(outbox)[0], Heartbeat)


def test_a_large_body_is_sent_in_parts() -> None:
    outbox = Outbox()
    body = bytes(range(256)) * 3_000
    outbox.put_in_lane(Head("a", 1, 200, "text/plain"))
    outbox.put_in_lane(Chunk("a", 1, body))
    outbox.put_in_lane(Chunk("a", 1, b"next"))
    outbox.put_in_lane(End("a", 1, "completed"))
    head, *chunks, last, end = everything(outbox)
    assert isinstance(head, Head)
    assert isinstance(end, End)
    parts = [chunk for chunk in chunks if isinstance(chunk, Chunk)]
    assert b"".join(part.data for part in parts) == body
    assert max(len(part.data) for part in parts) <= PART_BYTES
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert last == Chunk("a", 1, b"next")


def test_many_small_outputs_with_metrics_fit_into_messages() -> None:
    outbox = Outbox()
    for number in range(10_000):
        outbox.put_in_lane(Output(f"job-{number % 2}", 1, b"1", b"m" * 300))
    assert len(everything(outbox)) == 10_000


def test_lanes_take_turns() -> None:
    outbox = Outbox()
    outbox.put_in_lane(Chunk("big", 1, b"x" * PART_BYTES * 10))
    outbox.put_in_lane(Chunk("small", 1, b"token"))
    order = [frame.job for frame in everything(outbox) if isinstance(frame, Chunk)]
    assert order.index("small") == 1


def test_the_backlog_counts_unsent_bytes_of_a_job() -> None:
    outbox = Outbox()
    outbox.put_in_lane(Chunk("a", 1, b"x" * MESSAGE_BYTES * 2))
    before = outbox.backlog("a")
    outbox.next_message()
    assert before == MESSAGE_BYTES * 2
    assert 0 < outbox.backlog("a") < before
    everything(outbox)
    assert outbox.backlog("a") == 0


def test_frames_of_a_dropped_job_are_not_sent() -> None:
    outbox = Outbox()
    outbox.put_in_lane(Chunk("a", 1, b"x"))
    outbox.put_in_lane(Chunk("b", 1, b"y"))
    outbox.drop("a", 1)
    assert everything(outbox) == [Chunk("b", 1, b"y")]


@pytest.mark.parametrize("attempt", [1, 2])
def test_frames_of_other_attempts_are_kept(attempt: int) -> None:
    outbox = Outbox()
    large = b"x" * (2 * MESSAGE_BYTES)
    outbox.put_in_lane(Chunk("a", 1, large))
    outbox.put_in_lane(Chunk("a", 2, large))
    # Most of the first frame, and nothing of the second one.
    outbox.next_message()
    before = outbox.backlog("a")
    outbox.drop("a", attempt)
    kept = len(large) if attempt == 1 else before - len(large)
    assert outbox.size == outbox.backlog("a") == kept
    data = b"".join(frame.data for frame in everything(outbox) if isinstance(frame, Chunk))
    assert data == large[-kept:]
    assert not outbox.has_unsent("a")


def test_the_size_counts_unsent_bytes_of_all_jobs() -> None:
    outbox = Outbox()
    outbox.put_in_lane(Chunk("a", 1, b"x" * (PART_BYTES * 10)))
    outbox.put_in_lane(Chunk("b", 1, b"y" * 100))
    outbox.put_in_lane(End("b", 1, "completed"))
    assert outbox.size == PART_BYTES * 10 + 100
    outbox.next_message()
    assert outbox.size == outbox.backlog("a") + outbox.backlog("b")
    outbox.drop("b", 1)
    outbox.drop("a", 1)
    assert outbox.size == 0
    outbox.put_in_lane(Chunk("a", 1, b"x" * (PART_BYTES * 10 + 1)))
    everything(outbox)
    assert outbox.size == 0
