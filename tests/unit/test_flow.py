from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.flow import HIGH_WATERMARK_BYTES, LOW_WATERMARK_BYTES, ReceiveFlow, SendFlow
from proxy.wire.frames import STREAM_WINDOW


def test_the_sender_is_paused_and_resumed_once_at_the_watermarks() -> None:
    flow = ReceiveFlow()
    assert not flow.received(HIGH_WATERMARK_BYTES)
    assert [flow.received(1), flow.received(1)] == [True, False]
    taken = HIGH_WATERMARK_BYTES + 2 - LOW_WATERMARK_BYTES
    assert flow.consumed(taken)
    assert flow.resume() is None
    assert flow.consumed(1)
    assert [flow.resume(), flow.resume()] == [taken + 1, None]
    assert not flow.consumed(1)


def test_a_sender_that_was_never_paused_is_resumed_after_half_a_window() -> None:
    """Otherwise it would stop at the end of its window."""
    flow = ReceiveFlow()
    for _ in range(STREAM_WINDOW // 2 // 1024 - 1):
        flow.received(1024)
        assert not flow.consumed(1024)
        assert flow.resume() is None
    flow.received(1024)
    assert flow.consumed(1024)
    assert flow.resume() == STREAM_WINDOW // 2


def test_a_new_connection_starts_without_a_pause() -> None:
    flow = ReceiveFlow()
    assert flow.received(HIGH_WATERMARK_BYTES + 1)
    flow.restart()
    assert flow.should_pause()


def test_a_sender_stops_at_the_end_of_its_window_and_during_a_pause() -> None:
    flow = SendFlow(has_window=True)
    flow.sent(STREAM_WINDOW - 1)
    assert flow.may_send
    flow.sent(1)
    assert not flow.may_send
    flow.resume()
    assert flow.may_send
    flow.pause()
    assert not flow.may_send


def test_a_whole_answer_has_no_window() -> None:
    flow = SendFlow()
    flow.sent(10 * STREAM_WINDOW)
    assert flow.may_send


def test_bytes_that_are_held_are_acknowledged_once() -> None:
    flow = ReceiveFlow()
    half = STREAM_WINDOW // 2
    assert flow.resume(held=half) == half
    assert flow.resume(held=half) is None
    # The event is complete: it is passed on and consumed.
    flow.received(half)
    assert not flow.consumed(half)
    flow.received(half)
    assert flow.consumed(half)
    assert flow.resume() == half


def test_an_old_receiver_acknowledges_the_whole_window() -> None:
    flow = SendFlow(has_window=True)
    flow.sent(STREAM_WINDOW + 1)
    flow.resume()
    assert flow.unacknowledged == 0


@dataclass
class Link:
    """A sender, a receiver with its reader, and what is on its way between them."""

    size: int
    sender: SendFlow = field(default_factory=lambda: SendFlow(has_window=True))
    receiver: ReceiveFlow = field(default_factory=ReceiveFlow)
    data: list[int] = field(default_factory=list)
    # Acknowledged bytes, or None for a pause.
    control: list[int | None] = field(default_factory=list)
    outstanding: int = 0

    def send(self) -> None:
        if self.sender.may_send:
            self.sender.sent(self.size)
            self.data.append(self.size)
            self.outstanding += self.size

    def receive(self) -> None:
        if self.data and self.receiver.received(self.data.pop(0)):
            self.control.append(None)

    def consume(self) -> None:
        if self.receiver.backlog:
            self.outstanding -= self.size
            if not self.receiver.consumed(self.size):
                return
            if (acknowledged := self.receiver.resume()) is not None:
                self.control.append(acknowledged)

    def obey(self) -> None:
        if self.control:
            acknowledged = self.control.pop(0)
            if acknowledged is None:
                self.sender.pause()
            else:
                self.sender.resume(acknowledged)


@given(steps=st.lists(st.integers(0, 3), max_size=400), size=st.sampled_from([100, 9_000, 65_536]))
def test_the_bytes_in_flight_are_bounded_and_the_sender_continues(
    steps: list[int], size: int
) -> None:
    """All parties make steps in any order; then the others catch up with the sender."""
    link = Link(size)
    kinds = [link.send, link.receive, link.consume, link.obey]
    for kind in steps:
        kinds[kind]()
        assert link.outstanding <= STREAM_WINDOW + size
    while link.outstanding or link.control:
        for step in kinds[1:]:
            step()
    assert link.sender.may_send
