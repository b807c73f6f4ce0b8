"""Callers that wait for changes of a job."""

from proxy.jobs.model import JobId
from proxy.service.events import JobEvents

JOB = JobId("a")


async def test_progress_does_not_wake_a_caller_that_waits_for_the_end() -> None:
    events = JobEvents()
    with events.subscribe(JOB) as every, events.subscribe(JOB, only_end=True) as end:
        events.notify_progress(JOB)
        assert await every.wait(0.0)
        assert not await end.wait(0.0)
        events.notify(JOB)
        assert await every.wait(0.0)
        assert await end.wait(0.0)
        events.notify_progress(JobId("b"))
        events.notify(JobId("b"))
        assert not await every.wait(0.0)
        assert not await end.wait(0.0)
        events.notify_all()
        assert await end.wait(0.0)
    assert not len(events)
