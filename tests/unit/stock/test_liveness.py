"""The detection of lost stock workers and of jobs that a worker has lost."""

from proxy.channel.runpod.calls import find_request, read_ping, read_take
from proxy.channel.runpod.tracking import Closing, Liveness, Run, RunpodTimeouts, TrackedRuns
from proxy.jobs.model import JobId

DEATH, RESET = Closing(False, False, None), Closing(False, True, 100.0)
HOUSEKEEPING, OURS = Closing(False, False, 15.0), Closing(True, False, 0.0)
TIMEOUTS = RunpodTimeouts(poll_seconds=20, lease_seconds=35, gap_seconds=10)
JOB = JobId("job-1")


def alive(*lines: float) -> Liveness:
    life = Liveness(0.0)
    for _ in lines or (0.0,):
        life.opened()
    return life


def test_a_process_whose_connections_broke_has_a_grace_period() -> None:
    for closing in (DEATH, RESET, Closing(False, False, 0.9)):
        life = alive()
        life.closed(closing, 5.0)
        assert not life.loss(14.0, TIMEOUTS)
        assert life.loss(15.1, TIMEOUTS) == "its process ended"


def test_a_process_that_reconnects_is_not_lost() -> None:
    life = alive()
    life.closed(DEATH, 5.0)
    life.opened()
    assert not life.loss(30.0, TIMEOUTS)


def test_a_worker_that_closes_idle_connections_is_kept_alive_by_its_pings() -> None:
    for closing in (HOUSEKEEPING, OURS):
        life = alive()
        life.closed(closing, 20.0)
        life.heard = 25.0
        assert not life.loss(59.0, TIMEOUTS)
        assert life.loss(60.1, TIMEOUTS) == "silent for 35 s"


def test_an_idle_connection_that_closes_last_does_not_hide_a_death() -> None:
    life = alive(1, 2)
    life.closed(DEATH, 5.0)
    life.closed(HOUSEKEEPING, 5.01)
    assert life.loss(16.0, TIMEOUTS)


def holding(**fields: object) -> tuple[TrackedRuns, Run]:
    holdings, run = TrackedRuns(), Run(1, None, given_at=1.0)
    for name, value in fields.items():
        setattr(run, name, value)
    holdings.give(JOB, run)
    return holdings, run


def ping(
    holdings: TrackedRuns, now: float, *listed: str, asked_at: float = 0.0, died_at: float = -1.0
) -> list[bool]:
    found = holdings.on_ping(frozenset(listed), now, asked_at, died_at)
    return [one.counts for one in found]


def test_a_listed_job_that_is_missing_from_two_pings_counts_as_run() -> None:
    holdings, _ = holding()
    assert ping(holdings, 2.0, JOB) == []
    assert ping(holdings, 3.0) == []
    assert ping(holdings, 4.0) == [True]
    assert ping(holdings, 5.0) == []


def test_a_job_that_never_arrived_does_not_count_the_first_time() -> None:
    holdings, _ = holding()
    assert [ping(holdings, now, asked_at=5.0) for now in (2.0, 3.0, 4.0)] == [[], [], [False]]
    holdings.give(JOB, Run(2, None, given_at=5.0))
    assert [ping(holdings, now, asked_at=9.0) for now in (10.0, 11.0, 12.0)] == [[], [], [True]]


def test_a_worker_that_has_not_read_its_answer_may_still_do_so() -> None:
    holdings, _ = holding()
    assert [ping(holdings, float(now), asked_at=1.5) for now in range(2, 30)] == [[]] * 28


def test_an_idle_poll_ends_all_jobs_regardless_of_a_stale_ping() -> None:
    holdings, _ = holding()
    ping(holdings, 2.0, JOB)
    assert [one.counts for one in holdings.on_idle_poll(-1.0)] == [True]
    ping(holdings, 3.0, JOB)
    assert holdings.may_have(JOB)


def test_a_stopped_job_never_counts() -> None:
    holdings, run = holding()
    ping(holdings, 2.0, JOB)
    run.is_stopped = True
    assert ping(holdings, 3.0) == [False]


def test_a_job_in_flight_is_not_lost() -> None:
    holdings, run = holding(given_at=float("inf"))
    assert holdings.on_idle_poll(-1.0) == []
    run.given_at, run.is_ending = 1.0, True
    assert holdings.on_idle_poll(-1.0) == []


def test_a_lost_worker_does_not_get_back_jobs_that_its_pings_still_list() -> None:
    holdings, _ = holding()
    holdings.lose(0.5)
    assert not holdings.may_have(JOB)
    ping(holdings, 2.0, JOB)
    assert not holdings.may_have(JOB)
    ping(holdings, 3.0)
    assert holdings.may_have(JOB)


def test_a_job_is_not_assigned_again_while_its_result_may_be_posted_again() -> None:
    holdings, _ = holding()
    holdings.end(JOB, 2.0)
    # This ping may have been sent before the job arrived.
    ping(holdings, 2.5)
    assert not holdings.may_have(JOB)
    ping(holdings, 4.0, JOB)
    assert not holdings.may_have(JOB)
    ping(holdings, 5.0)
    assert holdings.may_have(JOB)


def test_an_idle_worker_may_be_assigned_a_job_again_at_once() -> None:
    holdings, _ = holding()
    holdings.end(JOB, 2.0)
    holdings.on_idle_poll(-1.0)
    assert holdings.may_have(JOB)


def test_a_job_is_foreign_if_two_pings_list_it_without_a_run() -> None:
    holdings, _ = holding()
    listed = frozenset({JOB})
    assert not holdings.on_foreign(listed)
    holdings.end(JOB, 2.0)
    assert not holdings.on_foreign(listed)
    assert holdings.on_foreign(listed) == listed
    assert not holdings.on_foreign(frozenset())


def test_paths_and_queries_are_parsed() -> None:
    call = find_request("/v2/ep/job-done/w-1/j-1")
    assert (call.endpoint, call.verb, call.worker, call.job, call.fault) == (
        "ep",
        "job-done",
        "w-1",
        "j-1",
        "",
    )
    for rest in (
        "job-take/w&job_in_progress=0",
        "job-done/w",
        "job-take/w/j",
        "job-take/w w",
        "job-done/w/j/k",
    ):
        assert find_request(f"/v2/ep/{rest}").fault
    assert read_take("job-take-batch", b"gpu=x&batch_size=4&job_in_progress=0") == (4, True)
    assert read_take("job-take", b"batch_size=4&job_in_progress=1") == (1, False)
    assert read_take("job-take-batch", b"batch_size=99999999999") == (1000, False)
    assert read_ping(b"job_id=a,b&runpod_version=1").jobs == {"a", "b"}
    assert (
        read_ping(b"status=unhealthy&check=_memory_check&reason=E%3A+x").fault
        == "_memory_check failed: E: x"
    )
