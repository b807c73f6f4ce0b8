"""A worker that violates the channel protocol loses its connection or its run.

Other workers and jobs are not affected.
"""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from harness.load.figures import tell
from harness.proxy.queue_api import QueueClient
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.tools.waiting import until
from harness.worker.puppet import Puppet, hello, puppet

from proxy.channel.native.app import TALK_MAX_FRAMES
from proxy.channel.native.connection import MESSAGE_CHARACTERS, METRICS_MAX_BYTES
from proxy.channel.native.validation import CARD_BYTES, HELLO_MAX_HOLDS, HELLO_MAX_MODELS
from proxy.service.mailbox import CHUNK_OVERHEAD_BYTES, STREAM_MAX_BYTES
from proxy.wire import frames
from proxy.wire.frames import Chunk, End, Head, Hold, Model, Output

MB = 1024 * 1024


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Run a proxy whose lease is long enough for a worker that sends few messages."""
    async with serving(lease=60.0) as running:
        yield running


SSE = "text/event-stream"
# Number of batches of a thousand pings.
PINGS = 50


def model(name: str, card: bytes = b"{}") -> frames.Hello:
    return hello(models=[Model(name, card)])


BAD_HELLOS = {
    "no name": hello(""),
    "a long name": hello("w" * 81),
    "a line break": hello("w\nworker.joined"),
    "a nul": hello("w\0"),
    "a path": hello("../w"),
    "many models": hello(models=[Model(str(one), b"{}") for one in range(HELLO_MAX_MODELS + 1)]),
    "a model without a name": model(""),
    "a long model": model("m" * 257),
    "a model with a line break": model("m\r\nX: 1"),
    "a large card": model("m", b'{"a":"%b"}' % (b"a" * CARD_BYTES)),
    "a card that is a list": model("m", b"[]"),
    "a card that goes on": model("m", b"{},{}"),
    "a card that is not UTF-8": model("m", b'{"a":"\xff"}'),
    "a deep card": model("m", b'{"a":' * 10_000),
    "many holds": hello(holds=[Hold("j", 1, 0)] * (HELLO_MAX_HOLDS + 1)),
    "a long hold": hello(holds=[Hold("j" * 129, 1, 0)]),
}


@pytest.mark.parametrize("name", BAD_HELLOS)
async def test_a_bad_hello_is_refused_with_a_reason(proxy: Proxy, name: str) -> None:
    async with puppet(proxy, BAD_HELLOS[name]) as one:
        code, reason = await one.closed()
    assert (code, bool(reason)) == (4400, True)
    assert not list(proxy.parts.fleet)


def packed(*said: Any) -> bytes:
    return msgspec.msgpack.encode(list(said))


BAD_MESSAGES = {
    "unknown frame": packed([99, 1]),
    "frame for a worker": packed([3, "j", 1]),
    "a number for a job": packed([13, 5, 1, 200, "x"]),
    "a text for an attempt": packed([15, "j", "1", "completed"]),
    "an attempt that is none": packed([15, "j", 1.5, "completed"]),
    "an unknown ending": packed([15, "j", 1, "won"]),
    "a map": packed({"tag": 12}),
    "no array": packed(12),
    "a text that is not UTF-8": b"\x91\x92\x10\xa1\xff",
    "nested": b"\x91" * 200_000,
    "too many frames": packed(*([12],) * 100_000),
    "a claim of many frames": b"\xdd\xff\xff\xff\xff" + packed([12])[1:],
    "too large": packed([16, "x" * frames.SOCKET_BYTES]),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
async def test_a_malformed_message_ends_the_connection(proxy: Proxy, name: str) -> None:
    async with puppet(proxy) as one:
        await one.socket.send_bytes(BAD_MESSAGES[name])
        code, reason = await one.closed()
    assert code == (1009 if name == "too large" else 4400)
    assert reason or code == 1009
    await until(lambda: not list(proxy.parts.fleet))


async def asked(proxy: Proxy, *, stream: bool) -> asyncio.Task[tuple[int, dict[str, str], bytes]]:
    """Start a call; return the task that waits for its answer."""

    async def call() -> tuple[int, dict[str, str], bytes]:
        async with proxy.http.post(CHAT, json=chat(stream=stream)) as response:
            return response.status, dict(response.headers), await response.read()

    return asyncio.create_task(call())


BAD_ANSWERS = {
    "no head": [Chunk("", 0, b"data: 1\n\n")],
    "a header in a header": [Head("", 0, 200, f"{SSE}\r\nSet-Cookie: a=b")],
    "a long type": [Head("", 0, 200, "x" * 201)],
    "a type beyond ASCII": [Head("", 0, 200, "text/\u00e9")],
    "no status": [Head("", 0, 0, SSE)],
    "a status that is none yet": [Head("", 0, 100, SSE)],
    "a status of four digits": [Head("", 0, 1000, SSE)],
    "a status below zero": [Head("", 0, -200, SSE)],
}


def of(job: frames.Job, said: list[Any]) -> list[Any]:
    """Return these frames with the id and the attempt of this job."""
    return [msgspec.structs.replace(frame, job=job.job, attempt=job.attempt) for frame in said]


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_answer_with_a_malformed_head_ends_only_its_run(proxy: Proxy, name: str) -> None:
    async with puppet(proxy, slots=2) as one:
        wrong = await asked(proxy, stream=True)
        job = await one.job()
        right = await asked(proxy, stream=True)
        other = await one.job()
        await one.say(Head(other.job, other.attempt, 200, SSE), *of(job, BAD_ANSWERS[name]))
        assert (await one.stopped()).job == job.job
        await one.say(
            End(job.job, job.attempt, "lost"), Chunk(other.job, other.attempt, b"data: 2\n\n")
        )
        await one.say(End(other.job, other.attempt, "completed"))
        status, headers, body = await wrong
        assert (status, json.loads(body)["error"]["code"], "Set-Cookie" in headers) == (
            500,
            "engine_error",
            False,
        )
        assert (await right)[::2] == (200, b"data: 2\n\n")


async def test_unexpected_frames_change_nothing(proxy: Proxy) -> None:
    async with puppet(proxy, slots=1) as one:
        call = await asked(proxy, stream=True)
        job = await one.job()
        mine = job.job, job.attempt
        forged = [
            (job.job, job.attempt + 1), (job.job, job.attempt - 1),
            (job.job, 2**64 - 1), (job.job, -(2**63)),
            (f"{job.job} ", job.attempt), ("", job.attempt), ("x" * 100_000, job.attempt),
        ]  # fmt: skip
        for run in forged:
            await one.say(
                Head(*run, 500, "x"),
                Chunk(*run, b"forged"),
                Output(*run, b"1"),
                End(*run, "failed"),
            )
        await one.say(
            Head(*mine, 200, SSE), Chunk(*mine, b"data: 1\n\n"), Head(*mine, 500, "text/html")
        )
        await one.say(
            Output(*mine, b"not json"),
            End(*mine, "completed"),
            Chunk(*mine, b"late"),
            End(*mine, "failed"),
        )
        assert (await call)[::2] == (200, b"data: 1\n\n")
        [worker] = list(proxy.parts.fleet)
        await until(lambda: worker.ignored == 4 * len(forged) + 3)


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_an_answer_without_a_body_has_none(proxy: Proxy, status: int) -> None:
    """Bytes after such a head must not be read as the answer to the client's next request."""
    async with puppet(proxy, slots=1) as one:
        call = await asked(proxy, stream=False)
        job = await one.job()
        mine = job.job, job.attempt
        await one.say(
            Head(*mine, status, "text/plain"),
            Chunk(*mine, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        )
        await one.say(End(*mine, "completed"))
        assert (await call)[::2] == (status, b"")


async def test_an_overlong_message_of_a_lost_run_is_truncated(proxy: Proxy) -> None:
    async with puppet(proxy, slots=1) as one:
        call = await asked(proxy, stream=False)
        job = await one.job()
        await one.say(
            End(job.job, job.attempt, "lost", "a\nb" * 1_000, "m" * (2 * MESSAGE_CHARACTERS))
        )
        again = await one.job()
        await one.say(End(again.job, again.attempt, "lost"))
        again = await one.job()
        await one.say(
            End(again.job, again.attempt, "lost", "a\nb" * 1_000, "m" * (2 * MESSAGE_CHARACTERS))
        )
        status, _, body = await call
        assert status == 502
        assert len(body) < MESSAGE_CHARACTERS + 1_000


BAD_OUTPUTS = {
    "no json": [Output("", 0, b"{")],
    "two values": [Output("", 0, b"1,2")],
    "the end of an answer": [Output("", 0, b'1],"status":"x","stream":[2')],
    "not utf-8": [Output("", 0, b'"\xff"')],
    "nested": [Output("", 0, b"[" * 200_000)],
    "nothing": [Output("", 0, b"")],
    "parts": [Output("", 0, b"[1", more=True), Output("", 0, b",]")],
    "a whole one": [Output("", 0, b"}", whole=True)],
    "metrics": [Output("", 0, b"1", b"}")],
    "large metrics": [Output("", 0, b"1", b'"%b"' % (b"m" * METRICS_MAX_BYTES))],
}


@pytest.mark.parametrize("name", BAD_OUTPUTS)
async def test_an_output_that_is_not_json_fails_only_its_job(proxy: Proxy, name: str) -> None:
    queue = QueueClient(proxy)
    async with puppet(proxy, slots=2) as one:
        wrong, right = await queue.run(1), await queue.run(2)
        jobs = {job.job: job for job in (await one.job(), await one.job())}
        await one.say(
            *of(jobs[wrong], BAD_OUTPUTS[name]), *of(jobs[right], [Output("", 0, b'{"a":1}')])
        )
        assert (await one.stopped()).job == wrong
        await one.say(*of(jobs[wrong], [Output("", 0, b"1"), End("", 0, "completed")]))
        await one.say(
            *of(jobs[right], [End("", 0, "completed"), Output("", 0, b"9"), End("", 0, "failed")])
        )
        ended = await queue.end(wrong)
        assert (ended["status"], ended["error"]) == (
            "FAILED",
            "The output is not valid JSON.",
        )
        assert ((await queue.end(right))["status"], (await queue.status(right))["output"]) == (
            "COMPLETED",
            [{"a": 1}],
        )
        assert len((await queue.call("GET", "requests"))["requests"]) == 2


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")
    )


FLOOD_FRAMES = 4_000


async def flood(one: Puppet, job: frames.Job, frame: Any, times: int) -> None:
    """Send `times` messages, each filled with the same frame of a job."""
    message = frames.encode(of(job, [frame]) * FLOOD_FRAMES)
    for _ in range(times):
        await one.socket.send_bytes(message)


@pytest.mark.parametrize("data", [b"", b"x"], ids=["nothing", "bytes"])
async def test_an_endless_stream_of_parts_is_aborted(proxy: Proxy, data: bytes) -> None:
    async with puppet(proxy, slots=1) as one:
        call = await asked(proxy, stream=True)
        job = await one.job()
        await one.say(*of(job, [Head("", 0, 200, SSE)]))
        await flood(
            one,
            job,
            Chunk("", 0, data, more=True),
            1 + STREAM_MAX_BYTES // CHUNK_OVERHEAD_BYTES // FLOOD_FRAMES,
        )
        assert (await one.stopped()).job == job.job
        await one.say(*of(job, [End("", 0, "lost")]))
        assert json.loads((await call)[2])["error"]["code"] == "answer_too_large"
        [worker] = list(proxy.parts.fleet)
        await until(lambda: worker.held == 0)


@pytest.mark.torture
@pytest.mark.parametrize("more", [True, False], ids=["parts", "chunks"])
@pytest.mark.parametrize("data", [b"", b"x"], ids=["nothing", "bytes"])
async def test_a_flood_of_chunks_uses_bounded_memory(proxy: Proxy, data: bytes, more: bool) -> None:
    """Two million chunks and no reader: the run is aborted, and its worker stays connected."""
    async with puppet(proxy, slots=1) as one:
        call = await asked(proxy, stream=False)
        job = await one.job()
        gc.collect()
        before = resident()
        await one.say(*of(job, [Head("", 0, 200, "application/json")]))
        await flood(one, job, Chunk("", 0, data, more), 500)
        assert (await one.stopped()).job == job.job
        used = (resident() - before) / MB
        await one.say(*of(job, [End("", 0, "lost")]))
        status, _, body = await call
        assert (status, json.loads(body)["error"]["code"]) == (502, "answer_too_large")
        tell("cost.flood.chunks", round(used, 1), "<= 200", "MB")
        assert used < 200


@pytest.mark.torture
@pytest.mark.parametrize("more", [True, False], ids=["parts", "pieces"])
async def test_a_flood_of_output_is_aborted(proxy: Proxy, more: bool) -> None:
    queue = QueueClient(proxy)
    async with puppet(proxy, slots=1) as one:
        name = await queue.run(1)
        job = await one.job()
        gc.collect()
        before = resident()
        sending = asyncio.create_task(
            flood(one, job, Output("", 0, b"" if more else b"1", more=more), 300)
        )
        assert (await one.stopped()).job == job.job
        await sending
        used = (resident() - before) / MB
        await one.say(*of(job, [End("", 0, "completed")]))
        assert (await queue.end(name))[
            "error"
        ] == "The answer is too large for this endpoint. Request less output."
        tell("cost.flood.output", round(used, 1), "<= 256", "MB")
        assert used < 256


async def test_excessive_messages_of_a_worker_are_ignored(proxy: Proxy) -> None:
    async with puppet(proxy) as one:
        await one.say(*[frames.Log("line\n" * 100)] * (TALK_MAX_FRAMES + 50))
        await until(lambda: any(worker.ignored == 50 for worker in proxy.parts.fleet))
    async with puppet(proxy) as one:
        await one.say(*[hello()] * (TALK_MAX_FRAMES + 1))
        assert (await one.closed())[0] == 4400


async def test_a_flood_of_credit_and_heartbeats_changes_nothing(proxy: Proxy) -> None:
    given = [frames.Credit(one, -one) for one in (2**63, -(2**63), 10**9, 0, 1)]
    async with puppet(proxy) as one:
        for _ in range(50):
            await one.say(*[frames.Heartbeat()] * 3_000, *given)
        call = await asked(proxy, stream=True)
        job = await one.job()
        mine = job.job, job.attempt
        await one.say(Head(*mine, 200, SSE), Chunk(*mine, b"data: 1\n\n"), End(*mine, "completed"))
        assert (await call)[0] == 200
        [worker] = list(proxy.parts.fleet)
        assert (worker.slots, worker.light_slots) == (1, 0)


async def test_the_number_of_adapters_is_limited(proxy: Proxy) -> None:
    """The number of models is limited, since they stay known after their worker disconnects."""
    base = Model("base", b"{}")
    async with puppet(proxy, hello("w-one", [base])), puppet(proxy, hello("w-two", [base])) as two:
        for batch in range(3):
            adapters = [Model(f"adapter-{batch}-{one}", b"{}", base=False) for one in range(500)]
            await two.say(hello("w-two", [base, *adapters]))
        assert (await two.closed())[0] == 4409


async def test_a_flood_of_pings_uses_bounded_memory(proxy: Proxy) -> None:
    """A worker that pings without reading gets no answers, which would occupy memory."""
    async with puppet(proxy) as one:
        await until(lambda: bool(list(proxy.parts.fleet)))
        transport = one.socket._writer.transport  # type: ignore[attr-defined]
        one.socket._conn.protocol.pause_reading()  # type: ignore[union-attr]
        gc.collect()
        before = resident()
        ping = b"\x89\xfd" + bytes(4) + b"p" * 125
        for _ in range(PINGS):
            transport.write(ping * 1_000)
            await until(lambda: not transport.get_write_buffer_size())
        used = (resident() - before) / MB
        tell("cost.flood.pings", round(used, 1), "<= 3", "MB")
        assert used < 3
