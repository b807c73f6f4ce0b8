"""`run` stores a job in the queue before it responds."""

import json
import re
from io import BytesIO
from typing import Any

import pytest
from harness.data.clock import FakeClock
from harness.data.jobs import HERE
from harness.proxy.queue_api import Answer, QueueClient, prompt
from harness.proxy.server import serving

from proxy.jobs.model import WorkerId

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-u1")
MB = 1024 * 1024


async def post(queue: QueueClient, body: Any, **more: Any) -> Answer:
    """Submit a body unchanged."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await queue.call(
        "POST", "run", data=data, headers={"Content-Type": "application/json"} | more
    )


async def test_a_submitted_job_has_an_id_and_is_in_the_queue(alone: QueueClient) -> None:
    answer = await post(alone, {"input": {"prompt": "x"}})
    assert answer.status == 200
    assert ID.fullmatch(answer["id"])
    assert answer.body == {"id": answer["id"], "status": "IN_QUEUE"}
    assert (await alone.status(answer["id"]))["status"] == "IN_QUEUE"


@pytest.mark.parametrize("value", [{}, [], "", 0, False, {"a": None}, [1, "ü", 1e400]])
async def test_any_input_except_null_is_accepted(alone: QueueClient, value: Any) -> None:
    answer = await post(
        alone,
        {"input": value} if value != [1, "ü", 1e400] else b'{"input": [1, "\xc3\xbc", 1e400]}',
    )
    assert answer.status == 200, answer


WRONG = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"[]", "must be a JSON object"),
    (b'{"input": null}', "`input` is missing"),
    (b'{"prompt": "x"}', "`input` is missing"),
    (b'{"input": "\xff"}', "not UTF-8"),
    (b'{"input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deeply|recursion"),
    (b'{"input": 1, "webhook": 5}', "`webhook` must be a string"),
    (b'{"input": 1, "policy": []}', r"\$\.policy"),
    (b'{"input": 1, "policy": {"ttl": "1"}}', r"\$\.policy\.ttl"),
    (
        b'{"input": 1, "policy": {"executionTimeout": 4999}}',
        "`policy.executionTimeout` must be from 5000 to",
    ),
    (b'{"input": 1, "policy": {"ttl": 9999}}', "`policy.ttl` must be from 10000 to 604800000"),
    (b'{"input": 1, "policy": {"ttl": 604800001}}', "`policy.ttl` must be from 10000 to 604800000"),
    (b'{"input": 1, "s3Config": "x"}', "`s3Config` must be a JSON object"),
]


@pytest.mark.parametrize(("body", "sentence"), WRONG)
async def test_the_error_names_the_invalid_part(
    alone: QueueClient, body: bytes, sentence: str
) -> None:
    answer = await post(alone, body)
    assert answer.status == 400
    assert list(answer.body) == ["error"]
    assert re.search(sentence, answer["error"]), answer


async def test_bounds_are_inclusive(alone: QueueClient) -> None:
    for policy in (
        {"executionTimeout": 5000, "ttl": 10_000},
        {"ttl": 604_800_000, "lowPriority": True},
        None,
        {},
    ):
        assert (await post(alone, {"input": 1, "policy": policy})).status == 200


async def test_unknown_keys_are_ignored(alone: QueueClient) -> None:
    body = {
        "input": 1,
        "timeout": 60_000,
        "webhookV2": "x",
        "s3Config": {"objectPath": "x", "new": 1},
    }
    assert (await post(alone, body)).status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_has_at_most_ten_megabytes(alone: QueueClient, chunked: bool) -> None:
    def body(size: int) -> Any:
        data = b'{"input": "' + b"x" * (size - 13) + b'"}'
        return _pieces(data) if chunked else BytesIO(data)

    json_type = {"Content-Type": "application/json"}
    assert (await alone.call("POST", "run", data=body(10 * MB), headers=json_type)).status == 200
    refused = await alone.call("POST", "run", data=body(10 * MB + 1), headers=json_type)
    assert refused.status == 413
    assert refused.body == {"error": "The request body is too large: at most 10 MB."}


async def _pieces(data: bytes) -> Any:
    for start in range(0, len(data), MB):
        yield data[start : start + MB]


async def test_only_json_is_accepted(alone: QueueClient) -> None:
    answer = await post(alone, {"input": 1}, **{"Content-Type": "text/plain"})
    assert answer.status == 415


async def test_a_full_queue_rejects_jobs_with_429() -> None:
    async with serving(max_queued=2) as proxy:
        queue = QueueClient(proxy)
        assert [(await post(queue, {"input": 1})).status for _ in range(3)] == [200, 200, 429]


async def test_the_output_is_that_of_the_handler(queue: QueueClient) -> None:
    ended = await queue.end(await queue.run(prompt("hi")))
    assert ended["status"] == "COMPLETED"
    assert ended["output"] == {"text": ["hi 0 hi 1 hi 2 "], "input_tokens": 1, "output_tokens": 3}


async def test_jobs_of_low_priority_are_handed_out_last(
    timed: QueueClient, clock: FakeClock
) -> None:
    low = await timed.run(1, policy={"lowPriority": True})
    normal = await timed.run(2)
    assert (await timed.status(normal))["reason"] == "No worker is connected."
    taken = await timed.proxy.parts.store.take(
        HERE, WorkerId("w"), limit=9, light_limit=0, now=clock.now(), run=1
    )
    assert [job.id for job in taken] == [normal, low]
