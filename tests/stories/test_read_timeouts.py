"""A stream has heartbeats within the client's own timeout; other calls are answered before it."""

import asyncio

from harness.proxy.server import CHAT, serving
from harness.worker.puppet import puppet

from proxy.wire.frames import Chunk, End, Head

FIRST = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
# The shortest timeout with heartbeats in time.
TIMEOUT_SECONDS = 1.6


async def test_a_stream_outlives_any_wait_and_any_prefill() -> None:
    """Both are longer than the client's timeout; without it there would be no heartbeat."""
    async with (
        serving(heartbeat_first=90.0, heartbeat_queued=90.0, heartbeat_silent=90.0) as proxy,
        proxy.openai(timeout=TIMEOUT_SECONDS) as client,
    ):
        request = {"model": "m", "messages": [], "stream": True}
        headers = {"x-stainless-read-timeout": str(TIMEOUT_SECONDS)}
        async with proxy.http.post(CHAT, json=request, headers=headers) as beside:
            assert await beside.content.readline() == b": queued position=1\n"
            stream = await client.chat.completions.create(**request)
            await beside.content.readuntil(b": queued position=1\n")
            async with puppet(proxy, slots=2) as worker:
                jobs = [await worker.job(), await worker.job()]
                await beside.content.readuntil(b": running\n")
                for job in jobs:
                    await worker.say(
                        Head(job.job, job.attempt, 200, "text/event-stream"),
                        Chunk(job.job, job.attempt, FIRST + DONE),
                        End(job.job, job.attempt, "completed"),
                    )
                text = "".join([one.choices[0].delta.content or "" async for one in stream])
    assert text == "hello"


async def test_a_held_call_is_answered_before_its_client_gives_up() -> None:
    """Also a stream without heartbeats is held."""
    cases = [
        (header, form, asked)
        for header in ("x-stainless-read-timeout", "x-stainless-timeout")
        for form, asked in (("auto", {}), ("off", {"stream": True}))
    ]
    async with serving(queue_timeout=90.0) as proxy:
        answers = await asyncio.gather(
            *(
                proxy.http.post(CHAT, json=asked, headers={header: "0.5", "x-heartbeat": form})
                for header, form, asked in cases
            )
        )
        for answer in answers:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "no_workers"
