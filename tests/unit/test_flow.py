from proxy.wire.flow import HIGH_WATERMARK_BYTES, LOW_WATERMARK_BYTES, ReceiveFlow, SendFlow
from proxy.wire.frames import STREAM_WINDOW


def test_the_sender_is_paused_and_resumed_once_at_the_watermarks() -> None:
    flow = ReceiveFlow()
    flow.received(HIGH_WATERMARK_BYTES)
    assert not flow.should_pause()
    flow.received(1)
    assert [flow.should_pause(), flow.should_pause()] == [True, False]
    flow.consumed(HIGH_WATERMARK_BYTES + 1 - LOW_WATERMARK_BYTES)
    assert not flow.should_resume()
    flow.consumed(1)
    assert [flow.should_resume(), flow.should_resume()] == [True, False]


def test_a_sender_that_was_never_paused_is_resumed_after_half_a_window() -> None:
    """Otherwise it would stop at the end of its window."""
    flow = ReceiveFlow()
    for _ in range(STREAM_WINDOW // 2 // 1024 - 1):
        flow.received(1024)
        flow.consumed(1024)
        assert not flow.should_resume()
    flow.received(1024)
    flow.consumed(1024)
    assert flow.should_resume()


def test_a_new_connection_starts_without_a_pause() -> None:
    flow = ReceiveFlow()
    flow.received(HIGH_WATERMARK_BYTES + 1)
    assert flow.should_pause()
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
