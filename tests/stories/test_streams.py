"""Streams arrive exactly as the engine sent them, and the stock client reads them."""

import json
from io import BytesIO

from harness.proxy.server import CHAT, chat, frames
from harness.proxy.shared import Line


async def test_a_stream_is_the_engines_own_frames(line: Line) -> None:
    async with line.proxy.http.post(CHAT, json=chat("héllo 你好", stream=True)) as response:
        assert response.status == 200
        events = await frames(response)
    assert events[-1] == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "".join(f"héllo 你好 {number} " for number in range(5))
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_the_headers_of_a_stream_prevent_buffering(line: Line) -> None:
    async with line.proxy.http.post(CHAT, json=chat(stream=True)) as response:
        head = response.headers
        await response.read()
    assert head["content-type"] == "text/event-stream; charset=utf-8"
    assert head["cache-control"] == "no-cache, no-transform"
    assert head["x-accel-buffering"] == "no"
    assert head["x-job-id"].endswith("-i1")
    assert head["x-request-id"].startswith("req_")
    assert head["openai-version"] == "2020-10-01"
    assert int(head["openai-processing-ms"]) >= 0


async def test_a_client_may_set_the_id_of_its_request(line: Line) -> None:
    for given, kept in (("my-request.1", True), ("no spaces", False), ("x" * 129, False)):
        async with line.proxy.http.post(
            CHAT, json=chat(), headers={"x-request-id": given}
        ) as response:
            assert (response.headers["x-request-id"] == given) is kept


async def test_the_stock_client_streams(line: Line) -> None:
    async with line.proxy.openai() as client:
        stream = await client.chat.completions.create(
            **chat("hey", stream=True, stream_options={"include_usage": True})
        )
        chunks = [chunk async for chunk in stream]
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == "hey 0 hey 1 hey 2 hey 3 hey 4 "
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_the_stock_client_requests_a_complete_answer(line: Line) -> None:
    async with line.proxy.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(**chat("hey"))
        completion = await client.completions.create(model="scripted", prompt="once", max_tokens=2)
    assert answer.parse().choices[0].message.content == "hey 0 hey 1 hey 2 hey 3 hey 4 "
    assert answer.headers["content-type"] == "application/json"
    assert completion.choices[0].text == "once 0 once 1 "


async def test_the_same_routes_exist_under_three_prefixes(line: Line) -> None:
    for base in ("/v1", "/openai/v1", "/v2/default/openai/v1"):
        async with line.proxy.http.post(
            f"{base}/completions", json={"model": "scripted", "prompt": "a"}
        ) as response:
            assert response.status == 200, await response.text()


async def test_a_large_request_and_a_large_answer_arrive_complete(line: Line) -> None:
    text = "x" * 5_000_000
    body = BytesIO(json.dumps(chat(text, max_tokens=1)).encode())
    async with line.proxy.http.post(
        CHAT, data=body, headers={"content-type": "application/json"}
    ) as response:
        answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == f"{text} 0 "
    async with line.proxy.http.post(CHAT, json=chat("a", fault="big:9000000")) as response:
        answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == "x" * 9_000_000


async def test_one_event_may_be_larger_than_a_frame(line: Line) -> None:
    text = "y" * 600_000
    async with line.proxy.http.post(CHAT, json=chat(text, max_tokens=2, stream=True)) as response:
        events = await frames(response)
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        == f"{text} 0 {text} 1 "
    )


async def test_two_requests_on_one_connection(line: Line) -> None:
    for _ in range(2):
        async with line.proxy.http.post(CHAT, json=chat(stream=True)) as response:
            assert (await frames(response))[-1] == b"data: [DONE]"
