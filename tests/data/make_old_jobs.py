"""Make `jobs-a0f3c11.db`, the store of an earlier version, with that version's own code.

    git worktree add --detach /tmp/old-a0f3c11 a0f3c11
    PYTHONPATH=/tmp/old-a0f3c11 .venv/bin/python tests/data/make_old_jobs.py tests/data
    git worktree remove /tmp/old-a0f3c11

The file has a queued, a running and finished jobs, deliveries that are due, and sealed values.
`jobs-a0f3c11.seal-key` is the key of these values. It was made for this file, and protects nothing.
Deadlines and retentions are far in the future, so that the file does not age.
"""

import asyncio
import sqlite3
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from proxy.service.seal import Seal

from proxy.jobs.lifecycle import Event
from proxy.jobs.model import (
    EndpointId,
    Input,
    Job,
    JobError,
    JobId,
    Millis,
    Owner,
    Submission,
    WorkerId,
)
from proxy.store.sqlite.store import SqliteStore

NAME = "jobs-a0f3c11"
SEAL_KEY = "VEVTVC1LRVktT05MWS10ZXN0LWtleS1vZi1hLXRlc3Q="
T0 = 1_780_000_000_000
CENTURY = Millis(100 * 365 * 24 * 3600_000)
HERE = EndpointId("default")
WORKER = WorkerId("w-old")
# An address of the loopback network that no other program uses.
WEBHOOK = "http://127.83.12.7:28017/hook?token=secret"
S3_CONFIG = b'{"accessId":"id","accessSecret":"secret"}'
PROMPT = b'{"prompt":"%b","sampling_params":{"max_tokens":3},"stream":true}'
TINY_PAGES_BYTES = 512


def submission(name: str, seal: Seal, *, webhook: bool = False, s3: bool = False) -> Submission:
    return Submission(
        id=JobId(f"{name}-u1"),
        endpoint=HERE,
        owner=Owner("anonymous"),
        work=Input(PROMPT % name.encode()),
        durable=True,
        light=False,
        low_priority=name == "low",
        queued_until=None,
        expires_at=Millis(T0 + CENTURY),
        execution_timeout=CENTURY,
        retention=CENTURY,
        webhook=seal.close_webhook(WEBHOOK) if webhook else None,
        s3_config=seal.close(S3_CONFIG) if s3 else None,
    )


async def fill(store: SqliteStore, seal: Seal) -> None:
    """Create the jobs, one second apart."""
    now = T0

    async def submit(name: str, *, webhook: bool = False, s3: bool = False) -> None:
        nonlocal now
        now += 1_000
        await store.submit(submission(name, seal, webhook=webhook, s3=s3), Millis(now))

    async def run(name: str, *, webhook: bool = False) -> Job:
        await submit(name, webhook=webhook)
        jobs = await store.take(HERE, WORKER, limit=1, light_limit=0, now=Millis(now + 100))
        return next(iter(jobs))

    async def settle(job_id: str, event: Event, **more: object) -> None:
        assert await store.settle(JobId(job_id), event, now=Millis(now + 500), **more)

    job = await run("completed", webhook=True)
    await store.append(job.id, job.attempt, [b'{"output":"one"}', b'{"output":2.50}'])
    await settle(job.id, Event.COMPLETE, attempt=1)
    job = await run("whole")
    await settle(job.id, Event.COMPLETE, attempt=1, output=b'{"big":12345678901234567890}')
    job = await run("failed", webhook=True)
    await settle(job.id, Event.FAIL, attempt=1, error=JobError("engine_error", "It broke."))
    job = await run("cancelled")
    await settle(job.id, Event.CANCEL)
    await submit("expired")
    await settle("expired-u1", Event.EXPIRE, error=JobError("expired", "Too late."))
    job = await run("again")
    await settle(job.id, Event.RELEASE, attempt=1, counts=True)
    await store.take(HERE, WORKER, limit=1, light_limit=0, now=Millis(now + 600))
    job = await run("running", webhook=True)
    await store.append(job.id, job.attempt, [b'{"output":"one"}'])
    await submit("queued", webhook=True, s3=True)
    await submit("low")


async def make(path: Path) -> None:
    store = SqliteStore(path)
    async with store.open():
        await fill(store, Seal(SEAL_KEY))


def main(folder: Path) -> None:
    """Write the two files into a folder."""
    target = folder / f"{NAME}.db"
    target.unlink(missing_ok=True)
    with TemporaryDirectory() as work:
        path = Path(work) / "jobs.db"
        asyncio.run(make(path))
        db = sqlite3.connect(path)
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute(f"PRAGMA page_size = {TINY_PAGES_BYTES}")
        db.execute("VACUUM")
        db.close()
        target.write_bytes(path.read_bytes())
    (folder / f"{NAME}.seal-key").write_text(f"{SEAL_KEY}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
