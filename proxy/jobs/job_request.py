"""A new durable job as its client describes it."""

from dataclasses import dataclass

from proxy.jobs.model import Millis, SubmissionKey

TTL = Millis(24 * 3600_000)
"""The time to live of a job that names none."""

RETENTION = Millis(30 * 60_000)
# The least retention of a job that was submitted with `runsync`.
SYNC_RETENTION = Millis(60_000)
# Of a job with a key: as long as it exists, a submission with the same key returns it.
KEY_RETENTION = Millis(24 * 3600_000)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """The content and the policy of a new job. `sync_wait`: the client waits for its end this long
    (`runsync`).
    """

    input: bytes
    execution_timeout: Millis | None = None
    ttl: Millis = TTL
    low_priority: bool = False
    webhook: str | None = None
    s3_config: bytes | None = None
    sync_wait: Millis | None = None
    key: SubmissionKey | None = None
