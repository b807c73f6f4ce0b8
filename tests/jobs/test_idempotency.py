"""`run` and `runsync` with an `Idempotency-Key`: a repetition returns the first job."""

import asyncio
from typing import Any

import pytest
from harness.data.clock import FakeClock
from harness.proxy.queue_api import Answer, QueueClient, body, prompt
from harness.proxy.server import serving
from pydantic import SecretStr

DAY_MS = 24 * 3600_000


async def post(queue: QueueClient, key: str, value: Any, operation: str = "run") -> Answer:
    sent = body({"input": value})
    sent["headers"] = sent["headers"] | {"Idempotency-Key": key}
    return await queue.call("POST", operation, **sent)


async def test_a_repetition_returns_the_same_job(alone: QueueClient) -> None:
    answers = await asyncio.gather(*(post(alone, "same", 1) for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer["id"] for answer in answers}) == 1
    other = await post(alone, "other", 1)
    assert other["id"] != answers[0]["id"]


async def test_another_body_is_rejected(alone: QueueClient) -> None:
    first = await post(alone, "body", 1)
    second = await post(alone, "body", 2)
    assert (second.status, second.headers["x-should-retry"]) == (409, "false")
    assert "another request body" in second["error"]
    assert (await post(alone, "body", 1))["id"] == first["id"]


async def test_an_invalid_key_is_rejected(alone: QueueClient) -> None:
    assert (await post(alone, "x" * 256, 1)).status == 400


async def test_a_repeated_runsync_returns_the_result_of_the_first_run(queue: QueueClient) -> None:
    both = [post(queue, "sync", prompt("once"), "runsync?wait=20000") for _ in range(2)]
    first, second = await asyncio.gather(*both)
    third = await post(queue, "sync", prompt("once"), "runsync?wait=20000")
    assert {first["status"], second["status"], third["status"]} == {"COMPLETED"}
    assert first["id"] == second["id"] == third["id"]
    assert first["output"] == third["output"]
    # The operation is a part of the key.
    assert (await post(queue, "sync", prompt("once")))["id"] != first["id"]


async def test_the_job_of_a_key_is_kept_for_a_day() -> None:
    clock = FakeClock()
    async with serving(clock=clock) as proxy:
        queue = QueueClient(proxy)
        job = (await post(queue, "day", 1))["id"]
        await queue.call("POST", f"cancel/{job}")
        clock.pass_time(DAY_MS / 1000 - 1)
        await proxy.parts.durable_sweeper.forget()
        assert (await post(queue, "day", 1)).body == {"id": job, "status": "CANCELLED"}
        clock.pass_time(2)
        await proxy.parts.durable_sweeper.forget()
        assert (await post(queue, "day", 1))["id"] != job


@pytest.mark.parametrize("store", ["", "memory:"])
async def test_a_key_belongs_to_one_owner(store: str) -> None:
    keys = {owner: owner * 20 for owner in ("ann", "bob")}
    settings = {"api_key": [SecretStr(f"{owner}={key}") for owner, key in keys.items()]}
    async with serving(store=store, **settings) as proxy:
        ann, bob = (QueueClient(proxy, key) for key in keys.values())
        job = (await post(ann, "mine", 1))["id"]
        other = await post(bob, "mine", 2)
        assert (other.status, other["id"] != job) == (200, True)
        assert (await post(ann, "mine", 1))["id"] == job
