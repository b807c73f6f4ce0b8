"""The ids of jobs and requests."""

from collections.abc import Callable
from typing import TypeAlias
from uuid import UUID

from proxy.jobs.model import JobId

RandomBytes: TypeAlias = Callable[[int], bytes]
"""Return this many random bytes: from the operating system, or from a seed in a simulation."""

UUID_BYTES = 16
REQUEST_ID_BYTES = 12


class Ids:
    """Makes ids of random bytes; the same bytes give the same ids."""

    def __init__(self, random_bytes: RandomBytes) -> None:
        self._random_bytes = random_bytes

    def interactive_job(self) -> JobId:
        """The id of a job whose client waits for it on its own connection."""
        return JobId(f"{self._uuid()}-i1")

    def durable_job(self, *, is_sync: bool) -> JobId:
        """The id of a job of the queue API; `is_sync`: of `runsync`."""
        return JobId(f"{'sync-' if is_sync else ''}{self._uuid()}-u1")

    def request(self) -> str:
        """The variable part of a request id, in hexadecimal."""
        return self._random_bytes(REQUEST_ID_BYTES).hex()

    def _uuid(self) -> UUID:
        return UUID(bytes=self._random_bytes(UUID_BYTES), version=4)
