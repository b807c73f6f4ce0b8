"""Default deny: every registered route is requested with every kind of key and without one."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio
from harness.proxy.queue_api import QueueClient, prompt
from harness.proxy.server import Proxy, serving
from multidict import CIMultiDict
from pydantic import SecretStr

from proxy.access.keys import Kind
from proxy.api.queue.app import OPERATIONS
from proxy.edge.gate import ROUTES, WEBSOCKET, Backend, Route

KEYS = {"alice": "alice-secret", "bob": "bob-secret"}
UNKNOWN = "00000000-0000-4000-8000-000000000000-u1"
BODY = b'{"input": 1, "model": "small"}'


@dataclass(frozen=True)
class KeyedProxy:
    """A proxy with keys, and the id of a queued job of alice's."""

    proxy: Proxy
    job: str

    async def ask(
        self, route: Route, method: str, key: str | None, job: str = UNKNOWN
    ) -> tuple[int, bytes]:
        """Send a request with this key, if any; return the status and the body."""
        path = (
            route.path.replace("{endpoint}", "default")
            .replace("{job}", job)
            .replace("{model}", "small")
        )
        path = path.replace(
            "{call}", f"w-1/{job}" if "job-done" in path or "job-stream" in path else "w-1"
        )
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if method == WEBSOCKET:
            return await self._dial(path, headers), b""
        async with self.proxy.http.request(
            *(method, path), headers={"Content-Type": "application/json"} | headers,
            data=BODY if method == "POST" else None, timeout=aiohttp.ClientTimeout(total=30),
        ) as response:  # fmt: skip
            return response.status, await response.read()

    async def _dial(self, path: str, headers: dict[str, str]) -> int:
        try:
            async with self.proxy.http.ws_connect(path, headers=headers):
                return 101
        except aiohttp.WSServerHandshakeError as refused:
            return refused.status


@pytest_asyncio.fixture(scope="module")
async def keyed() -> AsyncIterator[KeyedProxy]:
    """Start a proxy without a worker, so that the job stays in the queue."""
    keys = [SecretStr(f"{owner}={key}") for owner, key in KEYS.items()]
    async with serving(api_key=keys, endpoint=["default=small"], queue_timeout=0.5) as proxy:
        yield KeyedProxy(proxy, await QueueClient(proxy, KEYS["alice"]).run(prompt("hush")))


ROWS = [(route, method) for route in ROUTES for method in route.methods]


def named(value: object) -> str:
    return value.path if isinstance(value, Route) else str(value)


async def test_every_protected_route_requires_the_right_kind_of_key(keyed: KeyedProxy) -> None:
    """The requests are concurrent, since the refusal of a Runpod worker is delayed."""
    wrong = {
        Kind.CLIENT: (None, "wrong", keyed.proxy.parts.token),
        Kind.WORKER: (None, "wrong", KEYS["alice"]),
    }
    asked = [
        (route, method, key) for route, method in ROWS if route.kind for key in wrong[route.kind]
    ]
    answers = await asyncio.gather(*(keyed.ask(*each) for each in asked))
    let_in = [
        (each[0].path, each[1], status)
        for each, (status, _) in zip(asked, answers, strict=True)
        if status != 401
    ]
    # Concurrent requests of this number of Runpod workers exceed their limit.
    assert [one for one in let_in if one[2] != 429] == []
    assert len(asked) > 250


@pytest.mark.parametrize(
    ("route", "method"), [row for row in ROWS if row[0].kind is None], ids=named
)
async def test_public_routes_reveal_nothing(keyed: KeyedProxy, route: Route, method: str) -> None:
    status, body = await keyed.ask(route, method, None)
    assert status in {200, 503}
    assert b"default" not in body


async def test_a_client_with_its_key_is_accepted(keyed: KeyedProxy) -> None:
    """The requests are concurrent, since calls wait for a worker."""
    asked = [
        (route, method)
        for route, method in ROWS
        # `runsync` is left out because its response is delayed.
        if route.kind is Kind.CLIENT and not route.path.endswith("/runsync")
    ]
    answers = await asyncio.gather(
        *(keyed.ask(route, method, KEYS["bob"]) for route, method in asked)
    )
    refused = [
        (route.path, method, status)
        for (route, method), (status, _) in zip(asked, answers, strict=True)
        if status in {401, 403, 404, 405, 500} and "{job}" not in route.path
    ]
    assert refused == []
    assert len(asked) > 100


@pytest.mark.parametrize("path", [route.path for route in ROUTES if route.path.endswith("{job}")])
async def test_a_job_of_another_owner_looks_like_an_unknown_job(
    keyed: KeyedProxy, path: str
) -> None:
    route = next(route for route in ROUTES if route.path == path)
    for method in route.methods:
        status, body = await keyed.ask(route, method, KEYS["bob"], keyed.job)
        unknown = await keyed.ask(route, method, KEYS["bob"], UNKNOWN)
        assert status == 404
        assert (status, body.replace(keyed.job.encode(), b"ID")) == (
            unknown[0],
            unknown[1].replace(UNKNOWN.encode(), b"ID"),
        )


def test_the_table_has_exactly_the_routes_that_applications_register(keyed: KeyedProxy) -> None:
    """A route that is not in the table could not be reached."""
    backends = keyed.proxy.parts.app._backends
    registered = {
        (route.path, method)
        for route in backends[Backend.STATUS].fastapi.routes
        for method in route.methods
    }
    known = {(route.path, method) for route, method in ROWS if route.backend is Backend.STATUS}
    assert registered <= known
    assert known <= registered | {(path, "HEAD") for path, _ in registered}
    assert set(backends[Backend.QUEUE]._operations) == {path.split("/")[1] for path in OPERATIONS}


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
async def test_the_refusal_of_a_method_lists_the_allowed_ones(
    keyed: KeyedProxy, method: str
) -> None:
    for path, allowed in (
        ("/v1/models", "GET, HEAD"),
        ("/v2/default/run", "POST"),
        ("/livez", "GET, HEAD"),
    ):
        async with keyed.proxy.http.request(
            method, path, headers={"Authorization": KEYS["bob"]}
        ) as response:
            assert response.status == 405
            assert response.headers["allow"] == allowed
            assert "error" in await response.json()


@pytest.mark.parametrize(
    "path", ["/docs", "/v2/default/nothing", "/v1/nothing", "/x", "/v2/default/worker"]
)
async def test_an_unknown_route_is_reported_before_a_missing_key(
    keyed: KeyedProxy, path: str
) -> None:
    async with keyed.proxy.http.get(path) as response:
        assert response.status in {404, 405}
        assert "error" in await response.json()


async def test_two_keys_are_rejected_except_by_the_queue_api(keyed: KeyedProxy) -> None:
    def headers(*keys: str) -> list[tuple[str, str]]:
        return [("Authorization", key) for key in keys]

    for given, status in ((("wrong", KEYS["bob"]), 200), (("wrong", "worse"), 401)):
        async with keyed.proxy.http.get(
            "/v2/default/health", headers=CIMultiDict(headers(*given))
        ) as response:
            assert response.status == status
    for path in ("/v1/models", "/health"):
        async with keyed.proxy.http.get(
            path, headers=CIMultiDict(headers("wrong", KEYS["bob"]))
        ) as response:
            assert response.status == 400
