"""`requests`: recent jobs, newest first, in pages, and nothing of what they say."""

import pytest
from harness.proxy import serving
from harness.queue import QueueClient, prompt


async def test_newest_first_in_pages(alone: QueueClient) -> None:
    jobs = [await alone.run({"secret": "hidden"}, webhook="https://example.com/?token=hidden") for _ in range(5)]
    first = await alone.call("GET", "requests?limit=3")
    second = await alone.call("GET", f"requests?limit=3&before={first['next']}")
    assert [row["id"] for page in (first, second) for row in page["requests"]] == jobs[::-1]
    assert second["next"] is None
    assert "hidden" not in str(first.body)


async def test_only_those_of_a_status(alone: QueueClient) -> None:
    waiting, cancelled = await alone.run(1), await alone.run(1)
    await alone.call("POST", f"cancel/{cancelled}")
    for status, job in (("IN_QUEUE", waiting), ("CANCELLED", cancelled)):
        assert [row["id"] for row in (await alone.call("GET", f"requests?status={status}"))["requests"]] == [job]


@pytest.mark.parametrize("query", ["status=RUNNING", "limit=0", "limit=5000", "limit=x", "before=x"])
async def test_a_strange_question_is_refused(alone: QueueClient, query: str) -> None:
    assert (await alone.call("GET", f"requests?{query}")).status == 400


async def test_openai_calls_are_there_too_without_output(queue: QueueClient) -> None:
    async with queue.proxy.openai() as client:
        raw = await client.completions.with_raw_response.create(model="scripted", prompt="x", max_tokens=2)
    job = raw.headers["x-job-id"]
    assert job.endswith("-i1")
    assert job in [row["id"] for row in (await queue.call("GET", "requests"))["requests"]]
    status = await queue.status(job)
    assert status["status"] == "COMPLETED"
    assert "output" not in status.body
    assert (await queue.call("POST", f"retry/{job}")).status == 409


async def test_ten_in_ten_seconds_and_no_more(alone: QueueClient) -> None:
    answers = [await alone.call("GET", "requests") for _ in range(22)]
    refused = [answer for answer in answers if answer.status == 429]
    assert 2 <= len(refused) <= 12  # the window may have turned once
    assert 1 <= int(refused[0].headers["retry-after"]) <= 10
    assert refused[0].headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_limit_can_be_set(queue: QueueClient) -> None:
    async with serving(limit=["run=2", "requests=0"]) as proxy:
        client = QueueClient(proxy)
        statuses = [(await client.call("POST", "run", json={"input": prompt()})).status for _ in range(6)]
        assert statuses.count(200) in {2, 4}
        assert [(await client.call("GET", "requests")).status for _ in range(15)] == [200] * 15
