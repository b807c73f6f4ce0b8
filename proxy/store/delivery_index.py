"""The pending deliveries of a store in memory, by receiver and due time.

Deliveries to a receiver that is skipped cost nothing, however many wait.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterator
from heapq import merge, nsmallest
from itertools import islice
from operator import itemgetter

from proxy.jobs.model import JobId, Millis, Owner, Receiver


class DeliveryIndex:
    """Holds at most one delivery for each job, and returns those that are due.

    `receiver_of`: returns the receiver of a job's webhook.
    """

    def __init__(self, receiver_of: Callable[[JobId], Receiver]) -> None:
        self._receiver_of = receiver_of
        self._moments: dict[JobId, Millis] = {}
        # Sorted; fast for up to about 100,000 deliveries of one receiver.
        self._by_receiver: dict[Receiver, list[tuple[Millis, JobId]]] = {}
        # The earliest delivery of each receiver; sorted.
        self._first_by_owner: dict[Owner, list[tuple[Millis, Receiver]]] = {}

    def set(self, job_id: JobId, moment: Millis | None) -> None:
        """Set the due time of a delivery, or remove it (None)."""
        before = self._moments.pop(job_id, None)
        if before is None and moment is None:
            return
        receiver = self._receiver_of(job_id)
        queue = self._by_receiver.setdefault(receiver, [])
        first = queue[0] if queue else None
        if before is not None:
            del queue[bisect_left(queue, (before, job_id))]
        if moment is not None:
            self._moments[job_id] = moment
            insort(queue, (moment, job_id))
        self._move(receiver, first and first[0], queue[0][0] if queue else None)
        if not queue:
            del self._by_receiver[receiver]

    def _move(self, receiver: Receiver, before: Millis | None, after: Millis | None) -> None:
        """Move a receiver to the due time of its earliest delivery."""
        if before == after:
            return
        firsts = self._first_by_owner.setdefault(receiver.owner, [])
        if before is not None:
            del firsts[bisect_left(firsts, (before, receiver))]
        if after is not None:
            insort(firsts, (after, receiver))
        if not firsts:
            del self._first_by_owner[receiver.owner]

    def due(
        self,
        now: Millis,
        limit: int,
        besides: Collection[Receiver] = (),
        besides_owners: Collection[Owner] = (),
    ) -> list[JobId]:
        """Return up to `limit` jobs with deliveries due at `now` or earlier, earliest first.

        They remain in the index.
        """
        firsts: list[tuple[Millis, Receiver]] = []
        for owner, receivers in self._first_by_owner.items():
            if owner not in besides_owners:
                # All of `besides` can be receivers of this owner, and due.
                some = islice(receivers, limit + len(besides))
                firsts += [one for one in some if one[0] <= now and one[1] not in besides]
        queues = (self._due_to(receiver, now) for _, receiver in nsmallest(limit, firsts))
        return [job_id for _, job_id in islice(merge(*queues), limit)]

    def after(self, latest: Millis) -> list[JobId]:
        """Return the jobs with deliveries due after `latest`. Reads the whole index."""
        return [job_id for job_id, moment in self._moments.items() if moment > latest]

    def _due_to(self, receiver: Receiver, now: Millis) -> Iterator[tuple[Millis, JobId]]:
        queue = self._by_receiver[receiver]
        return islice(queue, bisect_right(queue, now, key=itemgetter(0)))
