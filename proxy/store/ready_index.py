"""The queue of one endpoint in the memory of one process.

The keys of queued jobs are in blocks, so that a key is added or removed at any position of a queue
of a million jobs in a few microseconds. All indexes together need about 230 bytes for each of them.
"""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from proxy.jobs.model import JobState, Millis, Owner
from proxy.jobs.policy import LOW_PRIORITY_WAIT_MILLIS
from proxy.store.queue_key import PlainKey, QueueKey

# A block that has twice as many keys is split.
BLOCK_KEYS = 512


def queue_key(job: JobState) -> QueueKey:
    """Return the key of a job among the jobs of its priority that need the same kind of credit."""
    wanted = job.submission
    return QueueKey(
        job.sequence, job.id, wanted.owner, job.created_at, wanted.light, wanted.low_priority
    )


class SortedKeys:
    """Queue keys, by sequence. No two keys have the same sequence.

    The values are in columns, where a key needs 34 bytes; as a `QueueKey` it needs 170.
    `column_types`: type codes of `array`, or "O" for objects. The first column has the sequences.
    """

    def __init__(self, column_types: str = "qOOqbb") -> None:
        self._column_types = column_types
        # The columns of each block. None of them is empty.
        self._blocks: list[Sequence[Any]] = []
        # The last sequence, and the number of keys, of each block.
        self._ends: list[int] = []
        self._sizes: list[int] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return chain.from_iterable(zip(*columns, strict=True) for columns in self._blocks)

    def get(self, sequence: int) -> QueueKey | None:
        """Return the key with this sequence, or None."""
        block, position = self._find(sequence)
        return QueueKey(*(one[position] for one in self._blocks[block])) if position >= 0 else None

    def add(self, key: Sequence[Any]) -> None:
        """Insert a key at its position."""
        sequence = key[0]
        if not self._blocks:
            self._blocks.append([[] if kind == "O" else array(kind) for kind in self._column_types])
            self._ends.append(sequence)
            self._sizes.append(0)
        self._length += 1
        if sequence > self._ends[-1]:
            # Nearly every key is the last one.
            block = len(self._ends) - 1
            position = self._sizes[block]
            self._ends[block] = sequence
        else:
            block = bisect_left(self._ends, sequence)
            position = bisect_left(self._blocks[block][0], sequence)
        columns = self._blocks[block]
        for column, value in zip(columns, key, strict=True):
            column.insert(position, value)
        self._sizes[block] += 1
        if self._sizes[block] >= 2 * BLOCK_KEYS:
            halves = (slice(BLOCK_KEYS), slice(BLOCK_KEYS, None))
            self._replace(block, [[column[half] for column in columns] for half in halves])

    def discard(self, sequence: int) -> None:
        """Remove the key with this sequence, if there is one."""
        block, position = self._find(sequence)
        if position < 0:
            return
        self._length -= 1
        columns = self._blocks[block]
        for column in columns:
            del column[position]
        self._replace(block, [columns] if columns[0] else [])

    def first(self, limit: int) -> list[QueueKey]:
        """Return the first `limit` keys."""
        return [QueueKey(*values) for values in islice(self, limit)]

    def before(self, sequence: int) -> int:
        """Return the number of keys with a lower sequence."""
        block = bisect_left(self._ends, sequence)
        number = sum(self._sizes[:block])
        if block < len(self._blocks):
            number += bisect_left(self._blocks[block][0], sequence)
        return number

    def _find(self, sequence: int) -> tuple[int, int]:
        """Return the block of a key and its position there, which is -1 if the key is missing."""
        block = bisect_left(self._ends, sequence)
        if block == len(self._blocks):
            return block, -1
        sequences = self._blocks[block][0]
        position = bisect_left(sequences, sequence)
        return block, position if sequences[position] == sequence else -1

    def _replace(self, block: int, parts: Sequence[Any]) -> None:
        self._blocks[block : block + 1] = parts
        self._ends[block : block + 1] = [columns[0][-1] for columns in parts]
        self._sizes[block : block + 1] = [len(columns[0]) for columns in parts]


class ReadyIndex:
    """The queued jobs of one endpoint that need the same kind of credit, in queue order.

    A job of low priority that has waited for `LOW_PRIORITY_WAIT_MILLIS` moves to its position among
    the jobs of normal priority.
    """

    def __init__(self) -> None:
        self._normal = SortedKeys()
        self._low = SortedKeys()
        # Only the sequences.
        self._by_owner: defaultdict[Owner, SortedKeys] = defaultdict(lambda: SortedKeys("q"))

    def __len__(self) -> int:
        return len(self._normal) + len(self._low)

    def add(self, key: PlainKey) -> None:
        """Insert a job at its position."""
        sequence, _, owner, _, _, is_low = key
        (self._low if is_low else self._normal).add(key)
        self._by_owner[owner].add((sequence,))

    def remove(self, job: JobState) -> None:
        """Remove a job from any position."""
        self._discard(job.sequence, job.submission.owner)

    def pop(self, limit: int, now: Millis) -> list[QueueKey]:
        """Remove and return the first `limit` jobs."""
        self._promote(now)
        taken = self._normal.first(limit)
        taken += self._low.first(limit - len(taken))
        for one in taken:
            self._discard(one.sequence, one.owner)
        return taken

    def pop_owned(self, owner: Owner, before: int, limit: int) -> list[QueueKey]:
        """Remove and return the first `limit` jobs of one owner with a sequence below `before`."""
        if owner not in self._by_owner:
            return []
        sequences = [one for (one,) in islice(self._by_owner[owner], limit) if one < before]
        found = [self._normal.get(one) or self._low.get(one) for one in sequences]
        for one in sequences:
            self._discard(one, owner)
        return [key for key in found if key is not None]

    def first(self, limit: int) -> list[QueueKey]:
        """Return the first `limit` jobs of normal priority."""
        return self._normal.first(limit)

    def before(self, sequence: int) -> int:
        """Return the number of jobs of normal priority with a lower sequence."""
        return self._normal.before(sequence)

    def ahead(self, job: JobState) -> int:
        """Return the number of jobs before this one."""
        index = self.before(job.sequence)
        if not job.submission.low_priority or self._normal.get(job.sequence) is not None:
            return index
        return len(self._normal) + self._low.before(job.sequence)

    def _discard(self, sequence: int, owner: Owner) -> None:
        self._normal.discard(sequence)
        self._low.discard(sequence)
        if owner in self._by_owner:
            self._by_owner[owner].discard(sequence)
            if not self._by_owner[owner]:
                del self._by_owner[owner]

    def _promote(self, now: Millis) -> None:
        while low := self._low.first(1):
            [one] = low
            if one.created_at + LOW_PRIORITY_WAIT_MILLIS > now:
                return
            self._low.discard(one.sequence)
            self._normal.add(one)
