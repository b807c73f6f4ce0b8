from proxy.jobs.model import EndpointId, WorkerId
from proxy.service.fleet import MOST_ILL, Fleet

HERE = EndpointId("default")


def test_what_ill_workers_say_is_bounded_though_nobody_asks() -> None:
    """Each of them has a name of its own, as pods have that are started again and again."""
    fleet = Fleet()
    for number in range(MOST_ILL + 10):
        fleet.report(WorkerId(f"pod-{number}"), HERE, until=number)
    assert len(fleet._ill) == MOST_ILL
    assert fleet.unhealthy(HERE, now=MOST_ILL) == 9, "the last ones are known"
