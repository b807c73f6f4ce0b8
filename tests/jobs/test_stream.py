"""`stream` consumes output, each element once; `?after=` and events read it without consuming."""

import asyncio
import json
import time

import pytest
from harness.proxy.queue_api import QueueClient, long, prompt, said
from harness.tools.waiting import until
from harness.worker.puppet import puppet

from proxy.wire.frames import Output


async def test_elements_arrive_as_they_are_produced_and_once(queue: QueueClient) -> None:
    job = await queue.run(prompt("a", stream=True, max_tokens=20, seed=30_000))
    answers = []
    while not answers or answers[-1]["status"] != "COMPLETED":
        answers.append(await queue.stream(job))
    assert len(answers) > 3
    assert said([element for answer in answers for element in answer["stream"]]) == "".join(
        f"a {n} " for n in range(20)
    )
    assert (await queue.stream(job)).body == {"status": "COMPLETED", "stream": []}


async def test_the_final_response_has_all_remaining_output(queue: QueueClient) -> None:
    job = await queue.run(prompt("a", stream=True, max_tokens=3000))
    await queue.end(job)
    answer = await queue.stream(job)
    assert answer["status"] == "COMPLETED"
    assert len(answer["stream"]) == 3000


async def test_an_element_has_output_and_metrics(queue: QueueClient) -> None:
    job = await queue.run(prompt("a", stream=True))
    await queue.end(job)
    first = (await queue.stream(job))["stream"][0]
    assert set(first) == {"output", "metrics"}
    assert first["metrics"]["scenario"] == "stream"


async def test_stream_waits_for_new_output(alone: QueueClient) -> None:
    job = await alone.run(1)
    began = time.monotonic()
    assert (await alone.stream(job, "?wait=1000")).body == {"status": "IN_QUEUE", "stream": []}
    assert 0.9 < time.monotonic() - began < 5


async def test_a_client_that_has_left_consumes_nothing(alone: QueueClient) -> None:
    readers = alone.proxy.parts.events
    async with puppet(alone.proxy, slots=1) as worker:
        job = await alone.run(1)
        run = await worker.job()
        leaving = asyncio.create_task(alone.stream(job))
        await until(lambda: len(readers) == 1, what="the client waits for output")
        # Its connection is closed.
        leaving.cancel()
        await until(lambda: len(readers) == 0, what="the proxy has noticed that it has left")
        await worker.say(Output(run.job, run.attempt, b'"one"'))
        assert (await alone.stream(job))["stream"] == [{"output": "one"}]


async def test_get_and_post_are_equivalent(queue: QueueClient) -> None:
    job = await queue.run(prompt(stream=True))
    await queue.end(job)
    assert len((await queue.call("POST", f"stream/{job}"))["stream"]) == 3


async def test_a_cancelled_job_is_streamed_once_and_then_unknown(queue: QueueClient) -> None:
    job = await queue.run(long("c"))
    await until(lambda: _has_output(queue, job), what="there is output")
    await queue.call("POST", f"cancel/{job}")
    answer = await queue.stream(job)
    assert answer["status"] == "CANCELLED"
    assert answer["stream"]
    assert (await queue.stream(job)).status == 404
    assert (await queue.status(job))["status"] == "CANCELLED"


async def _has_output(queue: QueueClient, job: str) -> bool:
    return bool((await queue.stream(job, "?after=0&wait=1000"))["stream"])


async def test_reading_from_a_cursor_consumes_nothing(queue: QueueClient) -> None:
    job = await queue.run(prompt("r", stream=True, max_tokens=5))
    await queue.end(job)
    for _ in range(2):
        assert said((await queue.stream(job, "?after=3"))["stream"]) == "r 3 r 4 "
    assert len((await queue.stream(job))["stream"]) == 5
    assert (await queue.stream(job, "?after=9"))["stream"] == []
    assert (await queue.stream(job, "?after=x")).status == 400


async def test_two_consumers_get_each_element_once(queue: QueueClient) -> None:
    job = await queue.run(prompt("t", stream=True, max_tokens=40, seed=10_000))

    async def consume() -> list[str]:
        found: list[str] = []
        while True:
            answer = await queue.stream(job)
            found += [element["output"]["text"][0] for element in answer["stream"]]
            if answer["status"] == "COMPLETED" and not answer["stream"]:
                return found

    one, other = await asyncio.gather(consume(), consume())
    assert sorted(one + other) == sorted(f"t {n} " for n in range(40))


async def test_a_long_text_is_split_between_characters(queue: QueueClient) -> None:
    text = "é" * 800_000
    body = {"prompt": text, "max_tokens": 1, "stream": True}
    job = await queue.run({"openai_route": "/v1/completions", "openai_input": body})
    ended = await queue.end(job)
    elements = (await queue.stream(job))["stream"]
    assert len(elements) > len(ended["output"])
    assert max(len(element["output"].encode()) for element in elements) <= 1024 * 1024
    assert "".join(element["output"] for element in elements) == "".join(ended["output"])
    event = json.loads("".join(ended["output"]).split("\n\n")[0].removeprefix("data: "))
    assert event["choices"][0]["text"] == f"{text} 0 "


async def test_events_arrive_as_they_are_produced(queue: QueueClient) -> None:
    job = await queue.run(prompt("e", stream=True, max_tokens=10, seed=30_000))
    events = await _events(queue, job)
    elements = [json.loads(event["data"]) for event in events if "event" not in event]
    assert said(elements) == "".join(f"e {n} " for n in range(10))
    assert [event["id"] for event in events if "id" in event] == [f"1-{n}" for n in range(1, 11)]
    assert events[-1] == {"event": "end", "data": '{"status":"COMPLETED"}'}
    # Events consume nothing.
    assert len((await queue.stream(job))["stream"]) == 10


@pytest.mark.parametrize("prefix", ["", "1-"], ids=["number", "cursor"])
async def test_events_resume_at_a_cursor(queue: QueueClient, prefix: str) -> None:
    """A number is a cursor of the previous release."""
    job = await queue.run(prompt("e", stream=True, max_tokens=5))
    await queue.end(job)
    header = {"Last-Event-ID": f"{prefix}3"}
    assert [event.get("id") for event in await _events(queue, job, header)] == [
        "1-4",
        "1-5",
        None,
    ]
    events = await _events(queue, f"{job}?after={prefix}4")
    assert [event.get("id") for event in events] == ["1-5", None]
    answer = await queue.stream(job, f"?after={prefix}4")
    assert (len(answer["stream"]), answer["next"]) == (1, "1-5")


async def test_events_of_an_unknown_job_or_cursor_are_rejected(queue: QueueClient) -> None:
    for job, headers in (("nonsense", {}), (await queue.run(1), {"Last-Event-ID": "x"})):
        answer = await queue.call(
            "GET", f"stream/{job}", headers={"Accept": "text/event-stream"} | headers
        )
        assert answer.status == (400 if headers else 404)
        assert list(answer.body) == ["error"]


async def _events(
    queue: QueueClient, job: str, headers: dict[str, str] | None = None
) -> list[dict[str, str]]:
    """Return all events of a job's stream."""
    accept = {"Accept": "text/event-stream"} | (headers or {})
    async with queue.proxy.http.get(f"/v2/default/stream/{job}", headers=accept) as response:
        assert response.content_type == "text/event-stream"
        text = await response.text()
    lines = [
        event.splitlines() for event in text.split("\n\n") if event and not event.startswith(":")
    ]
    return [dict(line.split(": ", 1) for line in event) for event in lines]  # type: ignore[arg-type]
