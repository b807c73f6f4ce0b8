"""A job as a stock worker gets it: a flat JSON object with `id` and `input`. What the client sent stays as it came."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from proxy.jobs.model import Input, Job

Unseal: TypeAlias = Callable[[bytes], bytes]
"""Decrypts what is only for the worker."""


def write_jobs(jobs: Sequence[Job], unseal: Unseal, *, as_list: bool) -> bytes:
    """The answer to a poll."""
    written = [_job(job, unseal) for job in jobs]
    return b"[%b]" % b",".join(written) if as_list else written[0]


def _job(job: Job, unseal: Unseal) -> bytes:
    work, sealed = job.submission.work, job.submission.s3_config
    if isinstance(work, Input):
        given = work.body
    else:
        given = b'{"openai_route":%b,"openai_input":%b}' % (msgspec.json.encode(work.path), work.body)
    more = b"" if sealed is None else b',"s3Config":' + unseal(sealed)
    return b'{"id":%b,"input":%b%b}' % (msgspec.json.encode(job.id), given, more)
