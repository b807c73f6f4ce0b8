from proxy.jobs.model import EndpointId, WorkerId
from proxy.service.fleet import UNHEALTHY_MAX_WORKERS, Fleet

HERE = EndpointId("default")


def test_reports_of_unhealthy_workers_are_bounded_without_being_read() -> None:
    """Each worker has its own name, like pods that are restarted repeatedly."""
    fleet = Fleet()
    for number in range(UNHEALTHY_MAX_WORKERS + 10):
        fleet.report(WorkerId(f"pod-{number}"), HERE, until=number)
    assert len(fleet._unhealthy) == UNHEALTHY_MAX_WORKERS
    assert fleet.unhealthy(HERE, now=UNHEALTHY_MAX_WORKERS) == 9, "the last ones are known"
