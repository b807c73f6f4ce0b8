"""The bytes of an answer that are kept for a retry."""

from proxy.access.limits import Budget
from proxy.service.kept import CHUNK_OVERHEAD_BYTES, KeptAnswer

BUDGET = 1_000


def kept(budget: Budget, max_bytes: int = 100) -> KeptAnswer:
    return KeptAnswer(
        lambda size: budget.acquire(size, "ann"),
        lambda size: budget.release(size, "ann"),
        max_bytes,
    )


def test_a_reader_that_begins_again_gets_all_chunks() -> None:
    one = kept(Budget(BUDGET))
    one.add(b"ab", is_mid_event=True)
    one.add(b"c", is_mid_event=False)
    assert one.consume(100) is None
    one.rewind()
    assert one.consume(1) == (b"ab", True)
    assert one.consume(1) == (b"c", False)
    assert one.consume(1) is None
    one.rewind()
    assert one.consume(100) == (b"abc", False)


def test_an_answer_that_is_too_large_is_lost_and_gives_its_memory_back() -> None:
    budget = Budget(BUDGET)
    one = kept(budget)
    one.add(b"x" * 100, is_mid_event=False)
    assert (one.is_lost, budget.used) == (False, 100 + CHUNK_OVERHEAD_BYTES)
    one.add(b"y", is_mid_event=False)
    assert (one.is_lost, budget.used) == (True, 0)
    one.add(b"z", is_mid_event=False)
    one.rewind()
    assert (one.consume(100), budget.used) == (None, 0)


def test_many_small_chunks_are_bounded() -> None:
    budget = Budget(BUDGET)
    one = kept(budget, max_bytes=BUDGET)
    for _ in range(BUDGET // CHUNK_OVERHEAD_BYTES + 1):
        one.add(b"x", is_mid_event=False)
    assert (one.is_lost, budget.used) == (True, 0)


def test_another_run_begins_with_nothing() -> None:
    budget = Budget(BUDGET)
    one = kept(budget)
    assert one.hold(10)
    one.add(b"x", is_mid_event=False)
    one.forget()
    assert (budget.used, one.is_lost) == (10, False)
    one.add(b"y", is_mid_event=False)
    one.rewind()
    assert one.consume(100) == (b"y", False)
    one.drop()
    one.drop()
    assert budget.used == 0


def test_memory_that_is_not_free_is_refused() -> None:
    budget = Budget(BUDGET)
    one = kept(budget)
    assert not one.hold(BUDGET + 1)
    assert one.hold(BUDGET)
    one.let_go(BUDGET)
    assert budget.used == 0
