"""The counters of the rate limits are bounded, at a constant amortized cost."""

from proxy.access.limits import LIMITS, MAX_IDLE_COUNTERS, REQUESTS_PER_WORKER, Limits
from proxy.jobs.model import EndpointId

HERE = EndpointId("default")


def test_cleanup_is_rare_when_no_counter_can_be_deleted() -> None:
    now = 0.0
    limits = Limits(LIMITS, REQUESTS_PER_WORKER, lambda _: 1, lambda: now)
    tables = 1
    for number in range(4 * MAX_IDLE_COUNTERS):
        before = limits._uses
        limits.enter(f"key-{number}", HERE, "run")
        tables += limits._uses is not before
    assert tables <= 4
    now = 10.0
    for number in range(5 * MAX_IDLE_COUNTERS):
        leave, _ = limits.enter(f"other-{number}", HERE, "run")
        leave()
    # The counters of open requests, and at most the same number of others.
    assert len(limits._uses) <= 9 * MAX_IDLE_COUNTERS
