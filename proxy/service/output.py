"""All mailboxes of this proxy: one for each job whose client is waiting here."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from proxy.jobs.model import JobId
from proxy.service.mailbox import Mailbox


class Output:
    """All mailboxes of this proxy."""

    def __init__(self) -> None:
        self._mailboxes: dict[JobId, Mailbox] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._mailboxes)

    def __iter__(self) -> Iterator[Mailbox]:
        return iter(tuple(self._mailboxes.values()))

    def open(self, job_id: JobId, max_answer: int) -> Mailbox:
        """A new mailbox; the relay that asks for it closes it."""
        mailbox = self._mailboxes[job_id] = Mailbox(job_id, max_answer)
        self._empty.clear()
        return mailbox

    def close(self, job_id: JobId) -> None:
        """The client's call is over."""
        self._mailboxes.pop(job_id, None)
        if not self._mailboxes:
            self._empty.set()

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until no call is open, or so long; whether none is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return not self._mailboxes

    def get(self, job_id: JobId) -> Mailbox | None:
        """The mailbox of a job whose client is here."""
        return self._mailboxes.get(job_id)

    def sink(self, job_id: JobId, attempt: int) -> Mailbox | None:
        """Where the output of this attempt goes; None when nobody wants it any more."""
        mailbox = self._mailboxes.get(job_id)
        return mailbox if mailbox is not None and mailbox.attempt == attempt else None

    def tick(self, now: float) -> None:
        """Look at every mailbox's alarms, a few times a second: cheaper than a timer for each write."""
        for mailbox in self._mailboxes.values():
            mailbox.tick(now)
