"""Every pair of status and event is either in the table or illegal."""

from pathlib import Path

import pytest

from proxy.jobs.lifecycle import TERMINAL, TRANSITIONS, Event, Status, advance, mermaid

LEGAL = {
    (Status.IN_QUEUE, Event.TAKE): Status.IN_PROGRESS,
    (Status.IN_QUEUE, Event.CANCEL): Status.CANCELLED,
    (Status.IN_QUEUE, Event.EXPIRE): Status.TIMED_OUT,
    (Status.IN_PROGRESS, Event.COMPLETE): Status.COMPLETED,
    (Status.IN_PROGRESS, Event.FAIL): Status.FAILED,
    (Status.IN_PROGRESS, Event.RELEASE): Status.IN_QUEUE,
    (Status.IN_PROGRESS, Event.CANCEL): Status.CANCELLED,
    (Status.IN_PROGRESS, Event.EXPIRE): Status.TIMED_OUT,
    (Status.FAILED, Event.RETRY): Status.IN_QUEUE,
    (Status.TIMED_OUT, Event.RETRY): Status.IN_QUEUE,
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("status", Status)
def test_a_pair_is_either_in_the_table_or_illegal(status: Status, event: Event) -> None:
    assert advance(status, event) == LEGAL.get((status, event))


def test_every_event_has_its_row() -> None:
    assert set(TRANSITIONS) == set(Event)


def test_only_retry_leaves_a_terminal_status() -> None:
    leaving = {event for event, transition in TRANSITIONS.items() if transition.sources & TERMINAL}
    assert leaving == {Event.RETRY}


def test_every_status_can_be_reached() -> None:
    reached = {Status.IN_QUEUE}
    for _ in Status:
        for event in Event:
            reached |= {target for status in reached if (target := advance(status, event))}
    assert reached == set(Status)


def test_the_diagram_in_the_documentation_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "lifecycle.md"
    assert mermaid() in page.read_text()
