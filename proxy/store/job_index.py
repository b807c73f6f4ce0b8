"""The indexes of jobs in the memory of one process: queues, deadlines and counts.

Their content is derived from the jobs. Each new state of a job must be recorded here, in the order
of the events; a persistent store loads its jobs when it is opened.

Most deadlines never occur, because jobs end long before. A heap would keep each entry until its
time: with default settings, five minutes of traffic. `DeadlineIndex` removes a changed or cancelled
deadline immediately.

The keys of queued jobs are in blocks, so that a key is added or removed at any position of a queue
of a million jobs in a few microseconds. All indexes together need about 230 bytes for each of them.
"""

from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, islice
from typing import Any

from proxy.jobs.lifecycle import TERMINAL, Event, Status
from proxy.jobs.model import Counts, EndpointId, JobId, JobState, Millis, Owner
from proxy.jobs.policy import LOW_PRIORITY_WAIT_MILLIS, deadline, status_before
from proxy.store.queue_key import PlainKey, QueueKey

# A block that has twice as many keys is split.
BLOCK_KEYS = 512

# The range of deadlines that share one bucket.
BUCKET_MILLIS = 1024

# Minimum number of empty buckets before they are removed. Without a removal, a day of traffic would
# leave one for each second.
EMPTY_BUCKETS_MIN = 64


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


class DeadlineIndex:
    """Holds at most one deadline for each job, and returns those that have passed."""

    def __init__(self) -> None:
        self._moments: dict[JobId, Millis] = {}
        # Dicts instead of sets, which need twice the memory.
        self._buckets: dict[int, dict[JobId, None]] = {}
        # A heap of the bucket numbers.
        self._order: list[int] = []
        self._empty_buckets = 0

    def __len__(self) -> int:
        return len(self._moments)

    def set(self, job_id: JobId, moment: Millis | None) -> None:
        """Set the deadline of a job, or remove it (None)."""
        before = self._moments.pop(job_id, None)
        if before is not None:
            self._remove(before // BUCKET_MILLIS, job_id)
        if moment is not None:
            self._moments[job_id] = moment
            number = moment // BUCKET_MILLIS
            bucket = self._buckets.get(number)
            if bucket is None:
                bucket = self._buckets[number] = {}
                heappush(self._order, number)
            elif not bucket:
                self._empty_buckets -= 1
            bucket[job_id] = None

    def due(self, now: Millis, limit: int) -> list[JobId]:
        """Return up to `limit` jobs with a deadline of `now` or earlier, earliest first.

        They remain in the index.
        """
        found: list[JobId] = []
        visited: list[int] = []
        while self._order and self._order[0] * BUCKET_MILLIS <= now and len(found) < limit:
            number = heappop(self._order)
            if not self._buckets[number]:
                del self._buckets[number]
                self._empty_buckets -= 1
                continue
            visited.append(number)
            passed = [job_id for job_id in self._buckets[number] if self._moments[job_id] <= now]
            found += sorted(passed, key=lambda job_id: (self._moments[job_id], job_id))
        for number in visited:
            heappush(self._order, number)
        return found[:limit]

    def _remove(self, number: int, job_id: JobId) -> None:
        bucket = self._buckets[number]
        bucket.pop(job_id, None)
        if bucket:
            return
        self._empty_buckets += 1
        # Half of the buckets: the cost of a removal is then small for each deadline.
        if self._empty_buckets > max(EMPTY_BUCKETS_MIN, len(self._buckets) // 2):
            self._buckets = {key: jobs for key, jobs in self._buckets.items() if jobs}
            self._order = list(self._buckets)
            heapify(self._order)
            self._empty_buckets = 0


# The fields of `Counts` by status.
UNFINISHED_FIELDS = {status: status.lower() for status in Status if status not in TERMINAL}
TERMINAL_FIELDS = {status: status.lower() for status in TERMINAL}


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


class JobIndex:
    """Indexes of all unfinished jobs, and counts of all jobs."""

    def __init__(self) -> None:
        self._ready: defaultdict[tuple[EndpointId, bool], ReadyIndex] = defaultdict(ReadyIndex)
        self._deadlines = DeadlineIndex()
        self._unfinished: Counter[tuple[EndpointId, Status]] = Counter()
        self._ended: Counter[tuple[EndpointId, str]] = Counter()
        self._sequence = 0

    def next_sequence(self) -> int:
        """Return the next sequence; all jobs share one series."""
        self._sequence += 1
        return self._sequence

    def note(self, job: JobState) -> None:
        """Record a job that has just been submitted, or whose last event has just occurred."""
        before = status_before(job)
        if before is Status.IN_QUEUE and job.last_event is not Event.TAKE:
            self._queue(job).remove(job)
        if job.status is Status.IN_QUEUE:
            self._queue(job).add(queue_key(job))
        if before is not None:
            self._unfinished[job.endpoint, before] -= 1
        if job.is_terminal:
            self._ended[job.endpoint, job.status] += 1
        else:
            self._unfinished[job.endpoint, job.status] += 1
        if job.last_event is Event.RETRY:
            self._ended[job.endpoint, job.last_event] += 1
        self.watch(job)

    def note_taken(self, job: JobState) -> None:
        """Record a new job that was taken without having been queued."""
        self._unfinished[job.endpoint, job.status] += 1
        self.watch(job)

    def watch(self, job: JobState) -> None:
        """Update the deadline of a job after a change."""
        self._deadlines.set(job.id, deadline(job))

    def load(
        self,
        queued: Iterable[tuple[EndpointId, Millis | None, PlainKey]],
        running: Iterable[JobState],
        ended: Mapping[tuple[EndpointId, str], int],
        sequence: int,
    ) -> None:
        """Initialize the indexes from queued jobs, each with its endpoint and deadline, running
        jobs, counts of ended jobs and a last sequence.
        """
        for endpoint, moment, key in queued:
            _, job_id, _, _, light, _ = key
            self._ready[endpoint, light].add(key)
            self._deadlines.set(job_id, moment)
        for (endpoint, _), queue in self._ready.items():
            self._unfinished[endpoint, Status.IN_QUEUE] += len(queue)
        for job in running:
            self._unfinished[job.endpoint, job.status] += 1
            self.watch(job)
        self._ended.update(ended)
        self._sequence = sequence

    def pop(self, endpoint: EndpointId, limit: int, now: Millis, *, light: bool) -> list[QueueKey]:
        """Remove the first jobs from the queue and return their keys.

        The caller takes the jobs and records that with `note`, or returns them with `put_back`.
        """
        return self._ready[endpoint, light].pop(limit, now)

    def pop_owned(
        self, endpoint: EndpointId, owner: Owner, before: int, limit: int
    ) -> list[QueueKey]:
        """Like `pop`, for `limit` jobs of one owner that have a sequence below `before`."""
        taken: list[QueueKey] = []
        for light in (False, True):
            taken += self._ready[endpoint, light].pop_owned(owner, before, limit - len(taken))
        return taken

    def put_back(self, endpoint: EndpointId, places: Iterable[QueueKey]) -> None:
        """Return popped keys to the queue."""
        for one in places:
            self._ready[endpoint, one.light].add(one)

    def due(self, now: Millis, limit: int) -> list[JobId]:
        """Return unfinished jobs with a deadline of `now` or earlier, earliest first."""
        return self._deadlines.due(now, limit)

    def counts(self, endpoint: EndpointId) -> Counts:
        """Return the number of jobs by status."""
        named = {
            name: self._unfinished[endpoint, status] for status, name in UNFINISHED_FIELDS.items()
        }
        named |= {name: self._ended[endpoint, status] for status, name in TERMINAL_FIELDS.items()}
        return Counts(**named, retried=self._ended[endpoint, Event.RETRY])

    def ahead(self, job: JobState) -> int:
        """Return the number of queued jobs before this one."""
        return self._queue(job).ahead(job)

    def first(self, endpoint: EndpointId, limit: int, *, light: bool) -> list[QueueKey]:
        """Return the keys of the first jobs of normal priority."""
        return self._ready[endpoint, light].first(limit)

    def all_queued(self, endpoint: EndpointId) -> int:
        """Return the number of queued jobs that need credit of either kind."""
        return self._unfinished[endpoint, Status.IN_QUEUE]

    def queued(self, endpoint: EndpointId, *, light: bool, before: int | None = None) -> int:
        """Return the number of queued jobs, or of those of normal priority before a sequence."""
        queue = self._ready[endpoint, light]
        return len(queue) if before is None else queue.before(before)

    def _queue(self, job: JobState) -> ReadyIndex:
        return self._ready[job.endpoint, job.submission.light]
