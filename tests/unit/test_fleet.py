from proxy.jobs.model import EndpointId, WorkerId
from proxy.service.fleet import UNHEALTHY_MAX_WORKERS, Fleet

HERE = EndpointId("default")


def test_what_ill_workers_say_is_bounded_though_nobody_asks() -> None:
    """Each worker has its own name, like pods that are restarted repeatedly."""
    fleet = Fleet()
    for number in range(UNHEALTHY_MAX_WORKERS + 10):
        fleet.report(WorkerId(f"pod-{number}"), HERE, until=number)
    assert len(fleet._unhealthy) == UNHEALTHY_MAX_WORKERS
    assert fleet.unhealthy(HERE, now=UNHEALTHY_MAX_WORKERS) == 9, "the last ones are known"
