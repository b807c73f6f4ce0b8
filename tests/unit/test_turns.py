"""The choice of deliveries: receivers take turns, and owners leave places for others."""

from harness.data.jobs import submission

from proxy.jobs.lifecycle import Status
from proxy.jobs.model import Delivery, Job, Millis, Owner
from proxy.webhooks.turns import DeliveryLimits, DeliveryTurns

ALICE = "alice"


def due(name: str, receiver: str, owner: str = ALICE) -> Delivery:
    """Return a due delivery to a host."""
    hook = f"http://{receiver}.example/secret"
    wanted = submission(name, owner=Owner(owner), webhook=hook)
    return Delivery(Job(wanted, 1, Status.CANCELLED, Millis(0)), 0)


def many(receiver: str, number: int, owner: str = ALICE) -> list[Delivery]:
    return [due(f"{owner}-{receiver}-{one}", receiver, owner) for one in range(number)]


def start(turns: DeliveryTurns) -> list[str]:
    return [delivery.job.id for delivery in turns.start()]


def test_a_receiver_has_its_own_limit() -> None:
    turns = DeliveryTurns(DeliveryLimits(max_per_receiver=2))
    assert turns.add([*many("slow", 5), *many("quick", 1)])
    assert sorted(start(turns)) == ["alice-quick-0", "alice-slow-0", "alice-slow-1"]
    assert [one.address for one in turns.full_receivers()] == ["http://slow.example"]
    assert turns.has_waiting
    turns.end(due("alice-slow-1", "slow").job.id)
    assert not turns.full_receivers()
    assert start(turns) == ["alice-slow-2"]


def test_a_delivery_is_added_once() -> None:
    turns = DeliveryTurns(DeliveryLimits(max_per_receiver=1))
    some = many("slow", 2)
    assert turns.add(some)
    assert not turns.add(some)
    assert start(turns) == ["alice-slow-0"]
    assert not turns.add(some), "one is active, one waits"
    turns.end(some[0].job.id)
    assert turns.add(some), "the first is due again"
    assert start(turns) == ["alice-slow-1"]
    assert not start(turns)


def test_receivers_take_turns() -> None:
    turns = DeliveryTurns(DeliveryLimits(max_deliveries=2))
    turns.add([*many("a", 4), *many("b", 2), *many("c", 1)])
    order = []
    while started := start(turns):
        assert len(started) == 1
        turns.end(due(started[0], "any").job.id)
        order += started
    assert [name.removeprefix("alice-") for name in order] == [
        *("a-0", "b-0", "c-0", "a-1", "b-1", "a-2", "a-3")
    ]


def test_each_owner_leaves_places_for_the_next() -> None:
    turns = DeliveryTurns(DeliveryLimits(max_deliveries=64))
    found = []
    for owner in range(7):
        for receiver in range(100):
            turns.add(many(f"host-{receiver}", 4, f"owner-{owner}"))
        found.append(len(start(turns)))
    assert found == [32, 16, 8, 4, 2, 1, 1]
    assert turns.is_full
    assert len(turns.full_owners()) == 7
