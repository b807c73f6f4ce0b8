"""Submissions with default values for the fields that do not matter to a test."""

from typing import Any

from proxy.jobs.model import EndpointId, JobId, Millis, Owner, Request, Submission

HERE = EndpointId("default")
ALICE = Owner("alice")
REQUEST = Request("POST", "/v1/chat/completions", "application/json", b'{"model": "demo"}')


def submission(job_id: str, **changed: Any) -> Submission:
    """Return a submission; `changed` overrides fields by name."""
    fields: dict[str, Any] = {
        "endpoint": HERE,
        "owner": ALICE,
        "work": REQUEST,
        "light": False,
        "low_priority": False,
        "queued_until": None,
        "expires_at": None,
        "execution_timeout": Millis(60_000),
        "retention": Millis(60_000),
    }
    return Submission(id=JobId(job_id), **fields | changed)
