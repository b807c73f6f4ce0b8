"""`requests` lists recent jobs in pages, newest first, without their content."""

import re
from pathlib import Path

import pytest
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import serving
from pydantic import SecretStr

from proxy.jobs.model import JobId


async def test_newest_first_in_pages(alone: QueueClient) -> None:
    jobs = [
        await alone.run({"secret": "hidden"}, webhook="https://example.com/?token=hidden")
        for _ in range(5)
    ]
    first = await alone.call("GET", "requests?limit=3")
    second = await alone.call("GET", f"requests?limit=3&before={first['next']}")
    assert [row["id"] for page in (first, second) for row in page["requests"]] == jobs[::-1]
    assert second["next"] is None
    assert "hidden" not in str(first.body)


async def test_a_cursor_is_opaque_and_valid_for_its_owner_only(tmp_path: Path) -> None:
    """Plain cursors contained the number of jobs that all owners had submitted."""
    keys = [SecretStr("alice=alice-secret"), SecretStr("bob=bob-secret")]
    settings = {
        "api_key": keys,
        "data_dir": tmp_path,
        "endpoint": ["default", "other"],
        "limit": ["requests=0"],
    }
    async with serving(**settings) as proxy:
        alice, bob = (QueueClient(proxy, f"{name}-secret") for name in ("alice", "bob"))
        jobs = [await bob.run(1) for _ in range(3)]
        cursors = [(await bob.call("GET", "requests?limit=1"))["next"] for _ in range(2)]
        for _ in range(20):
            await alice.run(1)
        await bob.run(1)
        cursors.append((await bob.call("GET", "requests?limit=1"))["next"])
        assert len({len(cursor) for cursor in cursors}) == 1
        assert len(set(cursors)) == 3
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{48}", cursor) for cursor in cursors)
        for client in (alice, QueueClient(proxy, bob.key, "other")):
            answer = await client.call("GET", f"requests?before={cursors[0]}")
            assert answer.status == 400
            assert answer.body == (await client.call("GET", "requests?before=nonsense")).body
    # Cursors stay valid after a restart.
    async with serving(**settings) as proxy:
        listed = await QueueClient(proxy, "bob-secret").call("GET", f"requests?before={cursors[0]}")
        assert [row["id"] for row in listed["requests"]] == jobs[1::-1]


async def test_a_modified_cursor_is_rejected(alone: QueueClient) -> None:
    for _ in range(2):
        await alone.run(1)
    cursor = (await alone.call("GET", "requests?limit=1"))["next"]
    changed = (
        cursor[:-1],
        cursor + "A",
        cursor[1:] + cursor[0],
        cursor.swapcase(),
        "A" * 48,
        "%C3%BC",
        "=",
    )
    for wrong in changed:
        answer = await alone.call("GET", f"requests?before={wrong}")
        assert answer.status == 400
        assert "`before` must be the `next`" in answer["error"]


async def test_a_cursor_of_the_previous_release_is_accepted(alone: QueueClient) -> None:
    """These cursors are plain numbers. Remove this with the next release."""
    jobs = [await alone.run(1) for _ in range(3)]
    last = await alone.proxy.parts.store.find(JobId(jobs[2]))
    assert last is not None
    older = await alone.call("GET", f"requests?before={last.sequence}")
    assert [row["id"] for row in older["requests"]] == jobs[1::-1]


async def test_the_list_is_filtered_by_status(alone: QueueClient) -> None:
    waiting, cancelled = await alone.run(1), await alone.run(1)
    await alone.call("POST", f"cancel/{cancelled}")
    for status, job in (("IN_QUEUE", waiting), ("CANCELLED", cancelled)):
        assert [
            row["id"] for row in (await alone.call("GET", f"requests?status={status}"))["requests"]
        ] == [job]


@pytest.mark.parametrize(
    "query", ["status=RUNNING", "limit=0", "limit=5000", "limit=x", "before=x"]
)
async def test_an_invalid_query_is_rejected(alone: QueueClient, query: str) -> None:
    assert (await alone.call("GET", f"requests?{query}")).status == 400


async def test_openai_calls_are_listed_without_output(queue: QueueClient) -> None:
    async with queue.proxy.openai() as client:
        raw = await client.completions.with_raw_response.create(
            model="scripted", prompt="x", max_tokens=2
        )
    job = raw.headers["x-job-id"]
    assert job.endswith("-i1")
    assert job in [row["id"] for row in (await queue.call("GET", "requests"))["requests"]]
    status = await queue.status(job)
    assert status["status"] == "COMPLETED"
    assert "output" not in status.body
    assert (await queue.call("POST", f"retry/{job}")).status == 409


async def test_the_default_rate_limit_is_ten_in_ten_seconds(alone: QueueClient) -> None:
    answers = [await alone.call("GET", "requests") for _ in range(22)]
    refused = [answer for answer in answers if answer.status == 429]
    # A new window may have begun once.
    assert 2 <= len(refused) <= 12
    assert 1 <= int(refused[0].headers["retry-after"]) <= 10
    assert refused[0].headers["x-ratelimit-remaining-requests"] == "0"


async def test_rate_limits_can_be_configured(queue: QueueClient) -> None:
    async with serving(limit=["run=2", "requests=0"]) as proxy:
        client = QueueClient(proxy)
        statuses = [
            (await client.call("POST", "run", json={"input": prompt()})).status for _ in range(6)
        ]
        assert statuses.count(200) in {2, 4}
        assert [(await client.call("GET", "requests")).status for _ in range(15)] == [200] * 15
