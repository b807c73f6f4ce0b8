"""Sorted keys of queued jobs.

The keys are in blocks, so that a key is added or removed at any position of a queue of a million
jobs in a few microseconds.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

from proxy.jobs.model import JobId, JobState, Millis, Owner

# A block that has twice as many keys is split.
BLOCK_KEYS = 512


class QueueKey(NamedTuple):
    """The sort key of a queued job: the sequence. The other fields do not affect the order."""

    sequence: int
    job_id: JobId
    owner: Owner
    created_at: Millis
    light: bool
    low_priority: bool


def queue_key(job: JobState) -> QueueKey:
    """Return the key of a job among the jobs of its priority that need the same kind of credit."""
    wanted = job.submission
    return QueueKey(
        job.sequence,
        job.id,
        wanted.owner,
        job.created_at,
        wanted.light,
        wanted.low_priority,
    )


class SortedKeys:
    """Queue keys, by sequence. No two keys have the same sequence."""

    def __init__(self) -> None:
        # None of them is empty.
        self._blocks: list[list[QueueKey]] = []
        # The last sequence of each block.
        self._ends: list[int] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def get(self, sequence: int) -> QueueKey | None:
        """Return the key with this sequence, or None."""
        block = bisect_left(self._ends, sequence)
        if block == len(self._blocks):
            return None
        keys = self._blocks[block]
        found = keys[bisect_left(keys, (sequence,))]
        return found if found.sequence == sequence else None

    def add(self, key: QueueKey) -> None:
        """Insert a key at its position."""
        self._length += 1
        if not self._blocks:
            self._blocks.append([key])
            self._ends.append(key.sequence)
            return
        block = min(bisect_left(self._ends, key.sequence), len(self._blocks) - 1)
        keys = self._blocks[block]
        insort(keys, key)
        self._ends[block] = keys[-1].sequence
        if len(keys) >= 2 * BLOCK_KEYS:
            self._blocks[block : block + 1] = [keys[:BLOCK_KEYS], keys[BLOCK_KEYS:]]
            self._ends.insert(block, keys[BLOCK_KEYS - 1].sequence)

    def discard(self, sequence: int) -> None:
        """Remove the key with this sequence, if there is one."""
        if self.get(sequence) is None:
            return
        self._length -= 1
        block = bisect_left(self._ends, sequence)
        keys = self._blocks[block]
        del keys[bisect_left(keys, (sequence,))]
        if keys:
            self._ends[block] = keys[-1].sequence
        else:
            del self._blocks[block]
            del self._ends[block]

    def first(self, limit: int) -> list[QueueKey]:
        """Return the first `limit` keys."""
        found: list[QueueKey] = []
        for keys in self._blocks:
            if len(found) >= limit:
                break
            found += keys[: limit - len(found)]
        return found

    def before(self, sequence: int) -> int:
        """Return the number of keys with a lower sequence."""
        block = bisect_left(self._ends, sequence)
        number = sum(map(len, self._blocks[:block]))
        if block < len(self._blocks):
            number += bisect_left(self._blocks[block], (sequence,))
        return number
