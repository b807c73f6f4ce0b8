"""Every error of the queue API is JSON, one sentence, and no `id`; whatever is wrong, and whichever operation it is."""

import json
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from yarl import URL

from proxy.access.rate_limits import LIMITS
from proxy.api.queue.app import OPERATIONS, RUN_BODY_MAX_BYTES, RUNSYNC_BODY_MAX_BYTES

KEY = "Bearer one"
JSON = {"Content-Type": "application/json"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")
STRANGE = (
    "nonsense",
    "x" * 500,
    "%00",
    "%ff",
    "%C3%BC",
    "a%2Fb",
    "..%2f..",
    "%7B%7D",
    "'%20or%201=1",
)
NO_MILLIS = ("soon", "-1", "1.5", "%00", "%D9%A3", "9" * 400)
OF_ORDERS = {"/run": RUN_BODY_MAX_BYTES, "/runsync": RUNSYNC_BODY_MAX_BYTES}
QUERIES = {
    "/status/{job}": [f"ttl={value}" for value in (*NO_MILLIS, "999", "604800001")],
    "/stream/{job}": [f"after={value}" for value in NO_MILLIS],
    "/requests": [
        *(f"{name}={value}" for name in ("limit", "before") for value in (*NO_MILLIS, "0")),
        *("limit=1001", "status=RUNNING", "status="),
    ],
}
BODIES = (
    *(b"", b"{", b"[]", b"5", b"null", b"\xff", b'{"input": null}', b'{"prompt": "x"}', b'{"input": 1}x'),
    b'{"input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    *(b'{"input": 1, "webhook": %b}' % url for url in (b"5", b'"x"', b'"http://127.0.0.1/"', b'"%b"' % (b"x" * 2049))),
    *(b'{"input": 1, "policy": %b}' % one for one in (b"[]", b'{"ttl": 1}', b'{"ttl": 1e99}', b'{"lowPriority": 1}')),
    b'{"input": 1, "s3Config": "x"}',
)  # fmt: skip


class Wrong(NamedTuple):
    """A request that is refused, and how."""

    what: str
    status: int
    method: str
    path: str
    body: bytes | None = None
    headers: dict[str, str] = JSON
    key: str = KEY


def wrongs() -> Iterator[Wrong]:
    """What can be wrong, operation by operation."""
    for path, methods in OPERATIONS.items():
        here, method = f"/v2/default{path}".format(job="nobody"), methods[-1]
        yield from (Wrong("method", 405, other, here) for other in METHODS if other not in methods)
        yield from (
            Wrong("endpoint", 404, method, f"/v2/{name}{path}".format(job="x")) for name in STRANGE
        )
        yield from (
            Wrong("key", 401, method, here, key=key) for key in ("", "Bearer", "Basic b25l", "two")
        )
        yield from (Wrong("path", 404, method, here + more) for more in ("/", "/x/y", "%00", "%2F"))
        if path.endswith("{job}"):
            yield from (
                Wrong("job", 404, each, f"/v2/default{path}".format(job=job))
                for each in methods
                for job in STRANGE
            )
        yield from (
            Wrong("query", 400, each, f"{here}?{query}")
            for each in methods
            for query in QUERIES.get(path, ())
        )
        if path in OF_ORDERS:
            yield from (Wrong("body", 400, method, here, body) for body in BODIES)
            yield Wrong("type", 415, method, here, b'{"input": 1}', {"Content-Type": "text/plain"})
            yield Wrong("size", 413, method, here, b" " * (OF_ORDERS[path] + 1))
    yield Wrong(
        "cursor",
        400,
        "GET",
        "/v2/default/stream/x",
        None,
        {"Accept": "text/event-stream", "Last-Event-ID": "x"},
    )
    yield from (
        Wrong("path", 404, "GET", path)
        for path in ("/v2/", "/v2/default", "/v2/default/", "/v2/default/what")
    )


@pytest_asyncio.fixture(scope="module")
async def strict() -> AsyncIterator[Proxy]:
    """A proxy that knows one key, and sets no limits."""
    async with serving(api_key=["alice=one"], limit=[f"{name}=0" for name in LIMITS]) as proxy:
        yield proxy


async def ask(proxy: Proxy, wrong: Wrong) -> tuple[int, dict[str, str], bytes]:
    """The answer as it came."""
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


def told(headers: dict[str, str], body: bytes) -> str:
    """The sentence of an error, and nothing else is in it."""
    assert headers["content-type"] == "application/json"
    answer = json.loads(body)
    assert list(answer) == ["error"]
    sentence: Any = answer["error"]
    assert isinstance(sentence, str)
    assert " " in sentence, sentence
    assert sentence.endswith("."), sentence
    return sentence


@pytest.mark.parametrize("operation", [*OPERATIONS, "/"])
async def test_whatever_is_wrong_is_one_sentence(strict: Proxy, operation: str) -> None:
    mine = [one for one in wrongs() if _operation(one.path) == operation]
    assert mine
    for wrong in mine:
        status, headers, body = await ask(strict, wrong)
        assert status == wrong.status, (wrong, body)
        if wrong.method != "HEAD":
            told(headers, body)
        if status == 405:
            assert sorted(headers["allow"].split(", ")) == sorted(OPERATIONS[operation])
        if status == 401:
            assert headers["www-authenticate"] == "Bearer"


def _operation(path: str) -> str:
    """The operation whose path it is or nearly is; `/` if of none."""
    rest = path.partition("?")[0].split("/")[3:]
    return next(
        (one for one in OPERATIONS if rest and one.split("/")[1] == rest[0].partition("%")[0]), "/"
    )


async def test_a_key_is_asked_for_before_anything_is_read(strict: Proxy) -> None:
    for path in OF_ORDERS:
        wrong = Wrong(
            "key",
            401,
            "POST",
            f"/v2/default{path}",
            b"no JSON",
            {"Content-Type": "text/plain"},
            key="",
        )
        assert (await ask(strict, wrong))[0] == 401


@pytest.mark.parametrize("path", OPERATIONS)
async def test_one_too_many_is_told_when_to_come_back(path: str) -> None:
    async with serving(limit=[f"{name}=1" for name in LIMITS], limit_per_worker=0) as proxy:
        here = f"/v2/default{path}".format(job="x")
        asked = [
            await ask(proxy, Wrong("", 0, OPERATIONS[path][0], here, b'{"input": null}', key=""))
            for _ in range(3)
        ]
        _, headers, body = next(
            answer for answer in asked if answer[0] == 429
        )  # the window may have turned once
    assert told(headers, body).startswith("More than 1 ")
    assert 1 <= int(headers["retry-after"]) <= 10
    assert headers["x-ratelimit-remaining-requests"] == "0"


@pytest.mark.parametrize("path", OF_ORDERS)
async def test_a_proxy_that_shuts_down_takes_no_job(path: str) -> None:
    async with serving() as proxy:
        proxy.parts.interactive.refuse()
        status, headers, body = await ask(
            proxy, Wrong("", 503, "POST", f"/v2/default{path}", b'{"input": 1}', key="")
        )
    assert status == 503
    assert told(headers, body)
    assert headers["retry-after"] == "5"


async def test_a_job_that_waits_cannot_be_retried(strict: Proxy) -> None:
    _, _, body = await ask(strict, Wrong("", 200, "POST", "/v2/default/run", b'{"input": 1}'))
    status, headers, body = await ask(
        strict, Wrong("", 409, "POST", f"/v2/default/retry/{json.loads(body)['id']}")
    )
    assert status == 409
    assert told(headers, body)
