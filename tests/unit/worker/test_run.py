from itertools import product

import pytest

from proxy.wire.flow import Outbox
from proxy.wire.frames import Body, Job
from worker_vllm.phases import TRANSITIONS, Phase, RunEvent
from worker_vllm.run import BadBodyError, Run


def run_of(size: int = 4) -> Run:
    return Run(Job("j", 1, "POST", "/v1/completions", "application/json", size), Outbox())


@pytest.mark.parametrize(("phase", "event"), [*product(Phase, RunEvent)])
def test_a_run_changes_its_phase_by_the_table_only(phase: Phase, event: RunEvent) -> None:
    run = run_of()
    run.phase = phase

    assert run.advance(event) == ((phase, event) in TRANSITIONS)
    assert run.phase is TRANSITIONS.get((phase, event), phase)


def test_every_phase_leads_to_the_end_and_the_end_to_nothing() -> None:
    reachable = {Phase.ENDED}
    for _ in Phase:
        reachable |= {source for (source, _), target in TRANSITIONS.items() if target in reachable}
    assert reachable == set(Phase)
    assert not [source for source, _ in TRANSITIONS if source is Phase.ENDED]


def test_every_run_that_has_not_ended_can_be_stopped_once() -> None:
    stoppable = {source for source, event in TRANSITIONS if event is RunEvent.STOP}
    assert stoppable == set(Phase) - {Phase.STOPPING, Phase.ENDED}


def test_a_body_is_complete_when_it_has_the_announced_size() -> None:
    run = run_of(4)
    assert not run.add(Body("j", 1, b"12", more=True))
    assert run.add(Body("j", 1, b"34"))
    assert run.request().body == b"1234"


@pytest.mark.parametrize(
    "parts", [[(b"123", False)], [(b"12345", True)], [(b"12", True), (b"345", False)]]
)
def test_a_body_of_another_size_is_rejected(parts: list[tuple[bytes, bool]]) -> None:
    run = run_of(4)
    with pytest.raises(BadBodyError):
        for data, more in parts:
            run.add(Body("j", 1, data, more=more))
