"""The sorted keys of a queue agree with a list, and the queue of an owner with the whole queue."""

import random
from bisect import bisect_left

import pytest

from proxy.jobs.model import JobId, Millis, Owner
from proxy.store.queue_key import QueueKey
from proxy.store.ready_index import BLOCK_KEYS, ReadyIndex, SortedKeys

OWNERS = [Owner("alice"), Owner("bob")]


def key(sequence: int, owner: Owner = OWNERS[0], *, low: bool = False) -> QueueKey:
    return QueueKey(sequence, JobId(f"{sequence}"), owner, Millis(sequence), False, low)


@pytest.mark.parametrize("seed", range(5))
def test_keys_agree_with_a_sorted_list(seed: int) -> None:
    chance = random.Random(seed)
    keys = SortedKeys()
    expected: list[int] = []
    for round_number in range(40):
        for sequence in chance.sample(range(10 * BLOCK_KEYS), BLOCK_KEYS):
            index = bisect_left(expected, sequence)
            is_known = expected[index : index + 1] == [sequence]
            assert (keys.get(sequence) is not None) == is_known
            if is_known or round_number % 8 == 7:
                keys.discard(sequence)
                del expected[index : index + is_known]
            else:
                keys.add(key(sequence))
                expected.insert(index, sequence)
        assert len(keys) == len(expected)
        assert [one.sequence for one in keys.first(len(expected) + 1)] == expected
        limit = chance.randrange(len(expected))
        assert [one.sequence for one in keys.first(limit)] == expected[:limit]
        for sequence in chance.sample(range(-1, 10 * BLOCK_KEYS + 2), 50):
            assert keys.before(sequence) == bisect_left(expected, sequence)
    for sequence in expected:
        keys.discard(sequence)
    assert (len(keys), keys.first(1), keys.before(1)) == (0, [], 0)
    assert not keys._blocks


def test_the_jobs_of_an_owner_are_removed_from_the_whole_queue() -> None:
    queue = ReadyIndex()
    for sequence in range(100):
        queue.add(key(sequence, OWNERS[sequence % 2], low=sequence % 3 == 0))
    taken = queue.pop(10, Millis(0))
    popped = queue.pop_owned(OWNERS[0], 50, 10)
    assert {one.owner for one in popped} == {OWNERS[0]}
    popped += queue.pop_owned(OWNERS[0], 50, 100)
    assert not queue.pop_owned(OWNERS[0], 50, 100)
    assert not queue.pop_owned(Owner("unknown"), 50, 100)
    alone = [one.sequence for one in taken if one.owner == OWNERS[0]]
    assert sorted(alone + [one.sequence for one in popped]) == [*range(0, 50, 2)]
    rest = queue.pop(1_000, Millis(0))
    sequences = [one.sequence for one in (*taken, *popped, *rest)]
    assert sorted(sequences) == [*range(100)]
    assert len(queue) == 0
    assert not queue._by_owner
