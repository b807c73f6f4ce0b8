"""The `seal-key` is missing, damaged or another one: a clear message, and no job hangs."""

import asyncio
from pathlib import Path
from secrets import token_bytes

import pytest
from harness.proxy.command import command
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import serving
from harness.runpod.raw_worker import Raw

from proxy.access.encryption import new_key

EX_UNAVAILABLE = 69
EX_CONFIG = 78
S3 = {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "d"}


async def some_jobs(folder: Path) -> list[str]:
    """Submit three jobs to a proxy that is stopped afterwards; the second one has a secret."""
    async with serving(data_dir=folder, store="") as proxy:
        queue = QueueClient(proxy)
        first = await queue.run(1)
        secret = await queue.run(2, s3Config=S3)
        return [first, secret, await queue.run(3)]


async def test_only_the_jobs_with_secrets_of_another_key_fail(tmp_path: Path) -> None:
    first, secret, last = await some_jobs(tmp_path)
    (tmp_path / "seal-key").write_text(new_key(token_bytes))
    async with serving(data_dir=tmp_path, store="") as proxy, Raw(proxy) as raw:
        queue = QueueClient(proxy)
        assert [job["id"] for job in await raw.take(batch=9)] == [first, last]
        failed = await queue.end(secret)
        assert failed["status"] == "FAILED"
        assert "cannot be decrypted" in failed["error"]
        for job in (first, last):
            assert await raw.done(job, {"output": 1}) == 200
            assert (await queue.end(job))["status"] == "COMPLETED"
        # A poll for one job, and nothing else to take.
        again = await queue.run(4, s3Config=S3)
        assert (await raw.next_job())["id"] == again


async def test_a_poll_whose_only_job_is_unreadable_is_answered(tmp_path: Path) -> None:
    _, secret, _ = await some_jobs(tmp_path)
    (tmp_path / "seal-key").write_text(new_key(token_bytes))
    async with serving(data_dir=tmp_path, store="") as proxy, Raw(proxy) as raw:
        queue = QueueClient(proxy)
        taken = [await raw.take(busy=True) for _ in range(3)]
        assert [job["input"] if job else None for job in taken] == [1, None, 3]
        assert (await queue.end(secret))["status"] == "FAILED"


async def refusal(folder: Path, status: int) -> str:
    """Return what a proxy prints that does not start."""
    async with command("proxy", "--port", "0", "--data-dir", str(folder)) as one:
        assert await asyncio.wait_for(one.process.wait(), 20) == status, one.text
    lines = [line for line in one.lines if line.startswith("vllm-serverless: ")]
    assert "Traceback" not in one.text
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("content", [b"", b"\n", b"junk\n", b"\xff\xfe", b"YWJj\n"])
async def test_a_damaged_key_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seal-key"
    path.write_bytes(content)
    path.chmod(0o600)
    assert f"{path} is empty or damaged" in await refusal(tmp_path, EX_CONFIG)
    assert path.read_bytes() == content


async def test_a_missing_key_is_rejected_if_a_job_needs_it(tmp_path: Path) -> None:
    await some_jobs(tmp_path)
    (tmp_path / "seal-key").unlink()
    assert f"{tmp_path / 'seal-key'} is missing" in await refusal(tmp_path, EX_UNAVAILABLE)
    assert not (tmp_path / "seal-key").exists()


async def test_a_missing_key_is_generated_if_no_job_needs_it(tmp_path: Path) -> None:
    async with serving(data_dir=tmp_path, store="") as proxy:
        job = await QueueClient(proxy).run(1)
    (tmp_path / "seal-key").unlink()
    async with serving(data_dir=tmp_path, store="") as proxy:
        assert (await QueueClient(proxy).status(job))["status"] == "IN_QUEUE"
    assert (tmp_path / "seal-key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "seal-key.new").exists()
