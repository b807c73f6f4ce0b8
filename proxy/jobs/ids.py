"""Generation of the ids of jobs and requests."""

from collections.abc import Callable
from typing import TypeAlias
from uuid import UUID

from proxy.jobs.model import JobId

RandomBytes: TypeAlias = Callable[[int], bytes]
"""Return the given number of random bytes.

They come from the operating system or, in a simulation, from a seed.
"""

UUID_BYTES = 16
REQUEST_ID_BYTES = 12


class Ids:
    """Generates ids from random bytes; equal bytes give equal ids."""

    def __init__(self, random_bytes: RandomBytes) -> None:
        self._random_bytes = random_bytes

    def interactive_job(self) -> JobId:
        """Return a new id of an interactive job: a UUID of version 4 and the suffix `-i1`."""
        return JobId(f"{self._uuid()}-i1")

    def durable_job(self, *, is_sync: bool) -> JobId:
        """Return a new id of a job of the queue API: a UUID of version 4 and the suffix `-u1`.

        The ids of `runsync` (`is_sync`) also have the prefix `sync-`.
        """
        return JobId(f"{'sync-' if is_sync else ''}{self._uuid()}-u1")

    def request(self) -> str:
        """Return the random part of a new request id: 24 hexadecimal digits."""
        return self._random_bytes(REQUEST_ID_BYTES).hex()

    def _uuid(self) -> UUID:
        return UUID(bytes=self._random_bytes(UUID_BYTES), version=4)
