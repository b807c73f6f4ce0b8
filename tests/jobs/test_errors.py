"""Every error of every operation of the queue API is JSON with one sentence and without an `id`."""

import json
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from yarl import URL

from proxy.access.limits import LIMITS
from proxy.api.queue.app import OPERATIONS, RUN_BODY_MAX_BYTES, RUNSYNC_BODY_MAX_BYTES

KEY = "Bearer one"
JSON = {"Content-Type": "application/json"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")
UNKNOWN_IDS = (
    *("nonsense", "x" * 500, "%00", "%ff", "%C3%BC"),
    *("a%2Fb", "..%2f..", "%7B%7D", "'%20or%201=1"),
)
NOT_INTEGERS = ("soon", "-1", "1.5", "%00", "%D9%A3", "9" * 400)
BODY_LIMITS = {"/run": RUN_BODY_MAX_BYTES, "/runsync": RUNSYNC_BODY_MAX_BYTES}
QUERIES = {
    "/status/{job}": [f"ttl={value}" for value in (*NOT_INTEGERS, "999", "604800001")],
    "/stream/{job}": [f"after={value}" for value in NOT_INTEGERS],
    "/requests": [
        *(f"{name}={value}" for name in ("limit", "before") for value in (*NOT_INTEGERS, "0")),
        *("limit=1001", "status=RUNNING", "status="),
    ],
}
WEBHOOKS = (b"5", b'"x"', b'"http://127.0.0.1/"', b'"%b"' % (b"x" * 2049))
POLICIES = (b"[]", b'{"ttl": 1}', b'{"ttl": 1e99}', b'{"lowPriority": 1}')
BODIES = (
    *(b"", b"{", b"[]", b"5", b"null", b"\xff"),
    *(b'{"input": null}', b'{"prompt": "x"}', b'{"input": 1}x'),
    b'{"input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    *(b'{"input": 1, "webhook": %b}' % webhook for webhook in WEBHOOKS),
    *(b'{"input": 1, "policy": %b}' % policy for policy in POLICIES),
    b'{"input": 1, "s3Config": "x"}',
)


class Wrong(NamedTuple):
    """A request that is rejected; `what` names the invalid part."""

    what: str
    status: int
    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = JSON
    key: str = KEY


def wrongs() -> Iterator[Wrong]:
    """Yield invalid requests of every operation."""
    for operation, methods in OPERATIONS.items():
        yield from _wrongs_of(operation, methods)
    events = {"Accept": "text/event-stream", "Last-Event-ID": "x"}
    yield Wrong("cursor", 400, "GET", "/v2/default/stream/x", None, events)
    for path in ("/v2/", "/v2/default", "/v2/default/", "/v2/default/what"):
        yield Wrong("path", 404, "GET", path)


def _wrongs_of(operation: str, methods: tuple[str, ...]) -> Iterator[Wrong]:
    path = f"/v2/default{operation}".format(job="unknown")
    method = methods[-1]
    for other in METHODS:
        if other not in methods:
            yield Wrong("method", 405, other, path)
    for name in UNKNOWN_IDS:
        yield Wrong("endpoint", 404, method, f"/v2/{name}{operation}".format(job="x"))
    for key in ("", "Bearer", "Basic b25l", "two"):
        yield Wrong("key", 401, method, path, key=key)
    for more in ("/", "/x/y", "%00", "%2F"):
        yield Wrong("path", 404, method, path + more)
    for each in methods:
        if operation.endswith("{job}"):
            for job in UNKNOWN_IDS:
                yield Wrong("job", 404, each, f"/v2/default{operation}".format(job=job))
        for query in QUERIES.get(operation, ()):
            yield Wrong("query", 400, each, f"{path}?{query}")
    if operation in BODY_LIMITS:
        for body in BODIES:
            yield Wrong("body", 400, method, path, body)
        yield Wrong("type", 415, method, path, b'{"input": 1}', {"Content-Type": "text/plain"})
        yield Wrong("size", 413, method, path, b" " * (BODY_LIMITS[operation] + 1))


@pytest_asyncio.fixture(scope="module")
async def strict() -> AsyncIterator[Proxy]:
    """A proxy with one API key and without rate limits."""
    async with serving(api_key=["alice=one"], limit=[f"{name}=0" for name in LIMITS]) as proxy:
        yield proxy


async def ask(proxy: Proxy, wrong: Wrong) -> tuple[int, dict[str, str], bytes]:
    """Send the request; return status, headers and body of the response."""
    headers = wrong.headers | ({"Authorization": wrong.key} if wrong.key else {})
    url = URL(proxy.url + wrong.path, encoded=True)
    data = None if wrong.body is None else BytesIO(wrong.body)
    async with proxy.http.request(
        wrong.method, url, headers=headers, data=data, allow_redirects=False
    ) as response:
        return (
            response.status,
            {name.lower(): value for name, value in response.headers.items()},
            await response.read(),
        )


def message_of(headers: dict[str, str], body: bytes) -> str:
    """Check that an error contains one sentence and nothing else; return the sentence."""
    assert headers["content-type"] == "application/json"
    answer = json.loads(body)
    assert list(answer) == ["error"]
    sentence: Any = answer["error"]
    assert isinstance(sentence, str)
    assert " " in sentence, sentence
    assert sentence.endswith("."), sentence
    return sentence


@pytest.mark.parametrize("operation", [*OPERATIONS, "/"])
async def test_every_error_is_one_sentence(strict: Proxy, operation: str) -> None:
    mine = [one for one in wrongs() if _operation(one.path) == operation]
    assert mine
    for wrong in mine:
        status, headers, body = await ask(strict, wrong)
        assert status == wrong.status, (wrong, body)
        if wrong.method != "HEAD":
            message_of(headers, body)
        if status == 405:
            assert sorted(headers["allow"].split(", ")) == sorted(OPERATIONS[operation])
        if status == 401:
            assert headers["www-authenticate"] == "Bearer"


def _operation(path: str) -> str:
    """Return the operation that a path, or its beginning, belongs to; `/` if there is none."""
    rest = path.partition("?")[0].split("/")[3:]
    return next(
        (one for one in OPERATIONS if rest and one.split("/")[1] == rest[0].partition("%")[0]), "/"
    )


async def test_the_key_is_checked_before_the_body_is_read(strict: Proxy) -> None:
    for path in BODY_LIMITS:
        plain = {"Content-Type": "text/plain"}
        wrong = Wrong("key", 401, "POST", f"/v2/default{path}", b"no JSON", plain, key="")
        assert (await ask(strict, wrong))[0] == 401


@pytest.mark.parametrize("path", OPERATIONS)
async def test_a_rate_limited_request_gets_retry_after(path: str) -> None:
    async with serving(limit=[f"{name}=1" for name in LIMITS], limit_per_worker=0) as proxy:
        wrong = Wrong(
            "",
            0,
            OPERATIONS[path][0],
            f"/v2/default{path}".format(job="x"),
            b'{"input": null}',
            key="",
        )
        answers = [await ask(proxy, wrong) for _ in range(3)]
        # A new window may have begun once.
        _, headers, body = next(answer for answer in answers if answer[0] == 429)
    assert message_of(headers, body).startswith("Rate limit of ")
    assert 1 <= int(headers["retry-after"]) <= 10
    assert headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("path", BODY_LIMITS)
async def test_a_draining_proxy_rejects_jobs(path: str) -> None:
    async with serving() as proxy:
        proxy.parts.admission.close()
        status, headers, body = await ask(
            proxy, Wrong("", 503, "POST", f"/v2/default{path}", b'{"input": 1}', key="")
        )
    assert status == 503
    assert message_of(headers, body)
    assert headers["retry-after"] == "5"


async def test_a_queued_job_cannot_be_retried(strict: Proxy) -> None:
    _, _, body = await ask(strict, Wrong("", 200, "POST", "/v2/default/run", b'{"input": 1}'))
    status, headers, body = await ask(
        strict, Wrong("", 409, "POST", f"/v2/default/retry/{json.loads(body)['id']}")
    )
    assert status == 409
    assert message_of(headers, body)
