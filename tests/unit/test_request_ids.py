"""No two running calls have the same request id."""

from harness.tools.waiting import until

from proxy.api.openai.request_ids import RequestIds
from proxy.wire.fields import REQUEST_ID

FIELDS = ((REQUEST_ID, b"mine"),)


def test_a_second_running_call_gets_a_suffix() -> None:
    ids = RequestIds(lambda: "0123456789")
    assert ids.enter(FIELDS) == FIELDS
    assert ids.enter(FIELDS) == ((REQUEST_ID, b"mine-01234567"),)
    ids.leave(FIELDS, lambda: True, is_over=True)
    assert ids.enter(FIELDS) == FIELDS


async def test_the_id_of_a_call_without_its_client_is_free_when_its_job_has_ended() -> None:
    """A retry can claim such a call, so that its run goes on."""
    looks = 0
    jobs = 1

    def has_ended() -> bool:
        nonlocal looks
        looks += 1
        return not jobs

    ids = RequestIds(lambda: "0123456789", stopping_seconds=0.01)
    ids.enter(FIELDS)
    ids.leave(FIELDS, has_ended, is_over=False)
    await until(lambda: looks > 2)
    assert ids.enter(FIELDS) != FIELDS
    jobs = 0
    await until(lambda: ids.enter(FIELDS) == FIELDS)
