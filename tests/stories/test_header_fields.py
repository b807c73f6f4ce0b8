"""The header fields that cross between client and engine are those of one table, and no others."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from harness.proxy.server import CHAT, Proxy, chat, serving
from harness.proxy.shared import Line
from harness.tools.waiting import until
from harness.worker.process import worker
from harness.worker.puppet import hello, puppet
from harness.worker.upstream_server import Answer, UpstreamServer, upstream_server

from proxy.wire.fields import TO_CLIENT, TO_ENGINE
from proxy.wire.frames import FIELDS, RESEND, Chunk, Credit, End, Head, Hello

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TO_ENGINE_FIELDS = {
    "X-Request-Id": "corr-77",
    "traceparent": TRACE,
    "tracestate": "vendor=1,other=2",
    "User-Agent": "client/1.0",
}
RATE_LIMITS = {
    "x-ratelimit-remaining-requests": "7",
    "RateLimit": "default;r=50;t=30",
    "anthropic-ratelimit-tokens-reset": "2027-01-01T00:00:00Z",
}
TO_CLIENT_FIELDS = {
    "Retry-After": "7",
    "retry-after-ms": "6500",
    "x-should-retry": "true",
    "WWW-Authenticate": 'Basic realm="engine"',
    "Content-Disposition": 'attachment; filename="a.json"',
} | RATE_LIMITS
# What the worker itself sends to its upstream.
OF_THE_WORKER = {"host", "accept", "content-type", "content-length"}
# What the proxy itself sends to a client.
OF_THE_PROXY = {
    "x-request-id",
    "x-job-id",
    "openai-processing-ms",
    "openai-version",
    "content-type",
    "content-length",
    "transfer-encoding",
    "cache-control",
    "x-accel-buffering",
    "date",
    "server",
    "connection",
}


@dataclass(frozen=True)
class Front:
    """A proxy and the upstream behind its worker."""

    proxy: Proxy
    upstream: UpstreamServer

    async def call(self, *, stream: bool = False, **headers: str) -> aiohttp.ClientResponse:
        """Send a chat call and read the answer."""
        request = {"model": "upstream", "messages": [], "stream": stream}
        async with self.proxy.http.post(CHAT, json=request, headers=headers) as response:
            await response.read()
        return response


@pytest_asyncio.fixture(scope="module")
async def front() -> AsyncIterator[Front]:
    """A proxy, and a worker with an upstream."""
    async with upstream_server() as upstream, serving() as proxy:
        async with worker(proxy, upstream=upstream.url):
            yield Front(proxy, upstream)


def test_the_table() -> None:
    assert {name.decode() for name in TO_ENGINE} == {name.lower() for name in TO_ENGINE_FIELDS}
    named = {name.lower() for name in TO_CLIENT_FIELDS} - {name.lower() for name in RATE_LIMITS}
    assert {name.decode() for name in TO_CLIENT} == named


async def test_an_upstream_receives_the_fields_of_the_table_and_no_others(front: Front) -> None:
    others = {
        "Cookie": "a=b",
        "X-Forwarded-For": "10.0.0.1",
        "Forwarded": "for=10.0.0.1",
        "OpenAI-Organization": "org",
        "X-Stainless-Lang": "python",
        "Idempotency-Key": "k",
        "Accept-Language": "de",
        "Authorization": "Bearer of-the-client",
        "baggage": "a=b",
        "TE": "trailers",
    }
    await front.call(**TO_ENGINE_FIELDS, **others)
    heard = front.upstream.heard[-1]
    assert {name for name, _ in heard.fields} <= {
        name.decode() for name in TO_ENGINE
    } | OF_THE_WORKER
    assert {name: heard[name.lower()] for name in TO_ENGINE_FIELDS} == TO_ENGINE_FIELDS


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("status", [200, 401])
async def test_a_client_receives_the_fields_of_the_table_and_no_others(
    front: Front, status: int, *, stream: bool
) -> None:
    others = {
        "Set-Cookie": "a=b",
        "Access-Control-Allow-Origin": "*",
        "Location": "/elsewhere",
        "Server": "upstream",
        "X-Powered-By": "upstream",
        "X-Request-Id": "of-the-upstream",
        "Cache-Control": "max-age=60",
        "Link": "</a>",
        "Strict-Transport-Security": "max-age=1",
    }
    body: Any = b"data: [DONE]\n\n" if stream and status == 200 else {"id": "x"}
    front.upstream.answers.append(Answer(body, status, others | TO_CLIENT_FIELDS))
    answer = await front.call(stream=stream)
    assert answer.status == status
    allowed = OF_THE_PROXY | {name.lower() for name in TO_CLIENT_FIELDS}
    assert {name.lower() for name in answer.headers} - allowed == set()
    assert {name: answer.headers[name] for name in TO_CLIENT_FIELDS} == TO_CLIENT_FIELDS
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers.get("server") != "upstream"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Request-Id", "a b"),
        ("X-Request-Id", "a" * 129),
        ("X-Request-Id", "é"),
        ("traceparent", "not hexadecimal"),
        ("tracestate", "a=" + "b" * 1024),
        ("User-Agent", "b" * 1025),
    ],
)
async def test_an_invalid_value_is_not_forwarded(front: Front, name: str, value: str) -> None:
    answer = await front.call(**{name: value})
    assert answer.status == 200
    assert front.upstream.heard[-1][name.lower()] is None


async def test_a_response_carries_a_bounded_number_of_fields(front: Front) -> None:
    many = {f"x-ratelimit-{number}": "1" for number in range(40)}
    front.upstream.answers.append(Answer({}, 200, many))
    answer = await front.call()
    assert sum(name.startswith("x-ratelimit-") for name in answer.headers) == 16
    front.upstream.answers.append(
        Answer({}, 200, {"x-ratelimit-a": "1", "x-ratelimit-b": "2" * 4096})
    )
    answer = await front.call()
    assert [name for name in answer.headers if name.startswith("x-rate")] == ["x-ratelimit-a"]


async def test_the_rate_limits_of_an_upstream_replace_those_of_the_proxy(front: Front) -> None:
    own = {f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")}
    assert own <= {name.lower() for name in (await front.call()).headers}
    front.upstream.answers.append(Answer({}, 200, {"X-RateLimit-Limit-Tokens": "4"}))
    answer = await front.call()
    assert [name for name in answer.headers if name.startswith("x-ratelimit-")] == [
        "x-ratelimit-limit-tokens"
    ]


async def test_the_id_of_an_answer_contains_that_of_the_request(line: Line) -> None:
    headers = {"X-Request-Id": "corr-77"}
    async with line.proxy.http.post(CHAT, json=chat(), headers=headers) as response:
        assert (await response.json())["id"] == "chatcmpl-corr-77"
        assert response.headers["x-request-id"] == "corr-77"


async def test_two_running_calls_do_not_share_a_request_id(line: Line) -> None:
    http = line.proxy.http
    headers = {"X-Request-Id": "c" * 128}
    request = chat("long", stream=True, max_tokens=100_000, seed=1_000)
    async with http.post(CHAT, json=request, headers=headers) as first:
        assert b'"chatcmpl-' + b"c" * 128 + b'"' in await first.content.readuntil(b"\n\n")
        async with http.post(CHAT, json=chat(), headers=headers) as second:
            answer_id = (await second.json())["id"]
        assert second.headers["x-request-id"] == "c" * 128
        assert answer_id.startswith("chatcmpl-" + "c" * 119 + "-")
        assert len(answer_id) == len("chatcmpl-") + 128
    # The first call was cancelled, and its worker may not have ended it yet.
    async with http.post(CHAT, json=chat(), headers=headers) as third:
        assert (await third.json())["id"] != "chatcmpl-" + "c" * 128


async def test_a_request_id_can_be_used_again_after_its_call(line: Line) -> None:
    for _ in range(2):
        headers = {"X-Request-Id": "again"}
        async with line.proxy.http.post(CHAT, json=chat(), headers=headers) as response:
            assert (await response.json())["id"] == "chatcmpl-again"


@pytest.mark.parametrize("features", [[RESEND], [RESEND, FIELDS]])
async def test_fields_are_sent_only_to_a_worker_that_knows_them(
    proxy: Proxy, features: list[str]
) -> None:
    greeting = Hello(1, "w", "puppet", features=features)
    async with puppet(proxy, greeting, Credit(1, 0)) as one:
        headers = {"X-Request-Id": "corr-1", "User-Agent": "client/1.0"}
        posting = asyncio.create_task(_post(proxy, headers))
        job = await one.job()
        sent = ((b"x-request-id", b"corr-1"), (b"user-agent", b"client/1.0"))
        assert job.fields == (sent if FIELDS in features else ())
        # The proxy applies the table to what a worker sends, too.
        fields = (
            (b"retry-after", b"1"),
            (b"set-cookie", b"a=b"),
            (b"x-ratelimit-a", b"1\r\nset-cookie: a=b"),
            (b"x-ratelimit-\r\nset-cookie", b"a"),
        )
        await one.say(
            Head(job.job, job.attempt, 200, "application/json", fields),
            Chunk(job.job, job.attempt, b"{}"),
            End(job.job, job.attempt, "completed"),
        )
        answer = await posting
        assert answer.headers["retry-after"] == "1"
        assert "set-cookie" not in answer.headers
        assert "x-ratelimit-a" not in answer.headers


async def test_a_worker_without_features_gets_no_fields(proxy: Proxy) -> None:
    async with puppet(proxy, hello(), Credit(1, 0)) as one:
        posting = asyncio.create_task(_post(proxy, {"X-Request-Id": "corr-1"}))
        job = await one.job()
        assert job.fields == ()
        await one.say(
            Head(job.job, job.attempt, 200, "application/json"),
            Chunk(job.job, job.attempt, b"{}"),
            End(job.job, job.attempt, "completed"),
        )
        assert (await posting).status == 200


async def test_an_ended_call_keeps_no_fields(proxy: Proxy) -> None:
    async with puppet(proxy, Hello(1, "w", "puppet", features=[FIELDS]), Credit(1, 0)) as one:
        posting = asyncio.create_task(_post(proxy, {"tracestate": "a=" + "b" * 1000}))
        job = await one.job()
        await one.say(End(job.job, job.attempt, "completed"))
        await posting
        await until(lambda: len(proxy.parts.interactive) == 0)
        [ended] = proxy.parts.interactive._ended
        assert ended.submission.work == type(ended.submission.work)(
            "POST", CHAT, "application/json", b""
        )


async def _post(proxy: Proxy, headers: dict[str, str]) -> aiohttp.ClientResponse:
    async with proxy.http.post(CHAT, json=chat(), headers=headers) as response:
        await response.read()
    return response
