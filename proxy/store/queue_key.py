"""The key of a queued job, by which the indexes order it."""

from typing import NamedTuple, TypeAlias

from proxy.jobs.model import JobId, Millis, Owner


class QueueKey(NamedTuple):
    """The sort key of a queued job: the sequence. The other fields do not affect the order."""

    sequence: int
    job_id: JobId
    owner: Owner
    created_at: Millis
    light: bool
    low_priority: bool


# A key without names for its fields. A start needs one for each job, and makes them faster.
PlainKey: TypeAlias = tuple[int, JobId, Owner, Millis, bool, bool]
