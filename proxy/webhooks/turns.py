"""The choice of the deliveries that start: receivers take turns, within limits.

Places are limited for each receiver, so that a slow receiver leaves the others their places. They
are limited for each owner as well: an owner never has more active deliveries than places are free.
One owner therefore gets half of the places, a second one half of the rest, and so on. An owner with
any number of slow receivers leaves places for the next owner.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.jobs.model import Delivery, JobId, Owner, Receiver

# One owner gets half of them.
MAX_DELIVERIES = 128
# A slow receiver must not use the connections of the others.
MAX_DELIVERIES_PER_RECEIVER = 4
# The limit for the bodies of all active deliveries; the last one may exceed it.
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """The limits of active deliveries: in all, for each receiver, and of their bodies in bytes."""

    max_deliveries: int = MAX_DELIVERIES
    max_per_receiver: int = MAX_DELIVERIES_PER_RECEIVER
    max_body_bytes: int = MAX_BODY_BYTES


class DeliveryTurns:
    """The waiting and the active deliveries."""

    def __init__(self, limits: DeliveryLimits) -> None:
        self._limits = limits
        # The next turn is that of the first receiver. None of the queues is empty.
        self._waiting: dict[Receiver, deque[Delivery]] = {}
        # The jobs of waiting and of active deliveries.
        self._jobs: set[JobId] = set()
        self._active: dict[JobId, Receiver] = {}
        self._per_receiver: Counter[Receiver] = Counter()
        self._per_owner: Counter[Owner] = Counter()

    @property
    def has_waiting(self) -> bool:
        """True if a delivery waits for a place."""
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        """True if no place is free."""
        return len(self._active) >= self._limits.max_deliveries

    @property
    def query_limit(self) -> int:
        """The number of due deliveries that fill all free places, if the active ones are among
        them.
        """
        return self._limits.max_deliveries + len(self._active)

    def add(self, due: Iterable[Delivery]) -> bool:
        """Add the due deliveries that are neither waiting nor active; return True if any is."""
        new = [delivery for delivery in due if delivery.job.id not in self._jobs]
        for delivery in new:
            self._jobs.add(delivery.job.id)
            self._waiting.setdefault(delivery.job.submission.receiver, deque()).append(delivery)
        return bool(new)

    def start(self) -> list[Delivery]:
        """Make the waiting deliveries active that the limits allow; return them."""
        started: list[Delivery] = []
        while (receiver := self._next_receiver()) is not None:
            started.append(self._start_first(receiver))
        return started

    def end(self, job_id: JobId) -> None:
        """Free the place of an active delivery."""
        receiver = self._active.pop(job_id)
        self._jobs.remove(job_id)
        self._per_receiver[receiver] -= 1
        self._per_owner[receiver.owner] -= 1
        if not self._per_receiver[receiver]:
            del self._per_receiver[receiver]
        if not self._per_owner[receiver.owner]:
            del self._per_owner[receiver.owner]

    def full_receivers(self) -> list[Receiver]:
        """Return the receivers with as many active deliveries as are allowed."""
        most = self._limits.max_per_receiver
        return [receiver for receiver, number in self._per_receiver.items() if number >= most]

    def full_owners(self) -> list[Owner]:
        """Return the owners with as many active deliveries as are allowed."""
        return [owner for owner in self._per_owner if self._is_full_for_owner(owner)]

    def _next_receiver(self) -> Receiver | None:
        may_start = (receiver for receiver in self._waiting if not self._is_full_for(receiver))
        return next(may_start, None)

    def _start_first(self, receiver: Receiver) -> Delivery:
        queue = self._waiting.pop(receiver)
        delivery = queue.popleft()
        if queue:
            # Behind the other receivers.
            self._waiting[receiver] = queue
        self._active[delivery.job.id] = receiver
        self._per_receiver[receiver] += 1
        self._per_owner[receiver.owner] += 1
        return delivery

    def _is_full_for(self, receiver: Receiver) -> bool:
        active = self._per_receiver[receiver]
        return active >= self._limits.max_per_receiver or self._is_full_for_owner(receiver.owner)

    def _is_full_for_owner(self, owner: Owner) -> bool:
        free = self._limits.max_deliveries - len(self._active)
        return self._per_owner[owner] >= free
