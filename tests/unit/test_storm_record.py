"""The checks of a storm find what is planted in its record."""

from collections.abc import Callable

import pytest
from harness.storm.record import Asked, Ended, findings

TOKENS = 5


def asked(kind: str = "follow") -> Asked:
    """Return a request that has ended well."""
    one = Asked("p", TOKENS, kind, job="j", is_whole=True, ends=["COMPLETED"])
    one.text = one.answer
    one.webhooks = ["COMPLETED"]
    return one


GOOD = {"j": Ended("COMPLETED", asked().answer)}


def test_a_good_record_has_no_findings() -> None:
    assert findings([asked()], GOOD) == []


def test_a_beginning_of_the_answer_is_right_if_the_client_knows_that_it_is_incomplete() -> None:
    one = asked("openai")
    one.job = ""
    one.text = "p 0 p 1 "
    one.is_whole = False
    one.ends = ["broken"]
    one.webhooks = []
    assert findings([one], {}) == []


def _repeat(one: Asked) -> None:
    one.text = one.text.replace("p 2 ", "p 2 p 2 ")


def _lose(one: Asked) -> None:
    one.text = one.text.replace("p 2 ", "")


def _begin_again(one: Asked) -> None:
    one.text = "p 0 p 1 p 0 "
    one.is_whole = False


def _end_twice(one: Asked) -> None:
    one.ends.append("FAILED")


def _never_end(one: Asked) -> None:
    one.ends.clear()


def _tell_another_end(one: Asked) -> None:
    one.webhooks.append("FAILED")


def _consume_twice(one: Asked) -> None:
    one.consumes = True
    _repeat(one)


@pytest.mark.parametrize(
    ("plant", "finding"),
    [
        (_repeat, "wrong text"),
        (_lose, "wrong text"),
        (_begin_again, "wrong text before a break"),
        (_end_twice, "finished twice"),
        (_never_end, "no final answer"),
        (_tell_another_end, "finished twice"),
        (_consume_twice, "repeated text"),
    ],
)
def test_a_planted_fault_of_a_client_is_found(plant: Callable[[Asked], None], finding: str) -> None:
    one = asked()
    plant(one)
    assert any(finding in line for line in findings([one], GOOD))


@pytest.mark.parametrize(
    ("ended", "finding"),
    [
        (None, "acknowledged and lost"),
        (Ended("IN_PROGRESS"), "not finished"),
        (Ended("FAILED", "", "1 run was lost"), "finished twice"),
        (Ended("COMPLETED", "p 0 p 1 p 1 "), "wrong output"),
        (Ended("COMPLETED", ""), "wrong output"),
        (Ended("FAILED", "", "The engine is on fire."), "failed"),
        (Ended("TIMED_OUT"), "without a reason"),
    ],
)
def test_a_planted_fault_of_a_job_is_found(ended: Ended | None, finding: str) -> None:
    jobs = {} if ended is None else {"j": ended}
    assert any(finding in line for line in findings([asked()], jobs))


def test_elements_that_were_lost_with_a_response_are_allowed_for_a_consumer() -> None:
    one = asked()
    one.consumes = True
    one.is_whole = False
    _lose(one)
    assert findings([one], GOOD) == []
