"""Default deny: every route that is registered anywhere, asked by everybody."""

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
from proxy.edge.routes import ROUTES, WEBSOCKET, Backend, Route

KEYS = {"alice": "alice-secret", "bob": "bob-secret"}
UNKNOWN = "00000000-0000-4000-8000-000000000000-u1"
BODY = b'{"input": 1, "model": "small"}'


@dataclass(frozen=True)
class House:
    """A proxy with keys, and a job of alice's that waits."""

    proxy: Proxy
    job: str

    async def ask(
        self, route: Route, method: str, key: str | None, job: str = UNKNOWN
    ) -> tuple[int, bytes]:
        """Status and body, by somebody with this key."""
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
async def house() -> AsyncIterator[House]:
    """Nobody works here, so that the job keeps waiting."""
    keys = [SecretStr(f"{owner}={key}") for owner, key in KEYS.items()]
    async with serving(api_key=keys, endpoint=["default=small"], queue_timeout=0.5) as proxy:
        yield House(proxy, await QueueClient(proxy, KEYS["alice"]).run(prompt("hush")))


ROWS = [(route, method) for route in ROUTES for method in route.methods]


def named(value: object) -> str:
    return value.path if isinstance(value, Route) else str(value)


async def test_nobody_gets_anywhere_without_the_right_kind_of_key(house: House) -> None:
    """All at once, since a stock worker that is refused has to wait for it."""
    wrong = {
        Kind.CLIENT: (None, "wrong", house.proxy.parts.token),
        Kind.WORKER: (None, "wrong", KEYS["alice"]),
    }
    asked = [
        (route, method, key) for route, method in ROWS if route.kind for key in wrong[route.kind]
    ]
    answers = await asyncio.gather(*(house.ask(*each) for each in asked))
    let_in = [
        (each[0].path, each[1], status)
        for each, (status, _) in zip(asked, answers, strict=True)
        if status != 401
    ]
    assert [
        one for one in let_in if one[2] != 429
    ] == []  # so many stock workers at once are told to come back
    assert len(asked) > 250


@pytest.mark.parametrize(
    ("route", "method"), [row for row in ROWS if row[0].kind is None], ids=named
)
async def test_what_is_open_tells_nothing(house: House, route: Route, method: str) -> None:
    status, body = await house.ask(route, method, None)
    assert status in {200, 503}
    assert b"default" not in body


@pytest.mark.parametrize(
    ("route", "method"),
    [
        row for row in ROWS if row[0].kind is Kind.CLIENT and not row[0].path.endswith("/runsync")
    ],  # which is held
    ids=named,
)
async def test_a_client_with_its_key_is_let_in(house: House, route: Route, method: str) -> None:
    status, _ = await house.ask(route, method, KEYS["bob"])
    assert status not in {401, 403, 405, 500}


@pytest.mark.parametrize("path", [route.path for route in ROUTES if route.path.endswith("{job}")])
async def test_anothers_job_is_no_job(house: House, path: str) -> None:
    route = next(route for route in ROUTES if route.path == path)
    for method in route.methods:
        status, body = await house.ask(route, method, KEYS["bob"], house.job)
        unknown = await house.ask(route, method, KEYS["bob"], UNKNOWN)
        assert status == 404
        assert (status, body.replace(house.job.encode(), b"ID")) == (
            unknown[0],
            unknown[1].replace(UNKNOWN.encode(), b"ID"),
        )


def test_what_an_application_registers_is_in_the_table(house: House) -> None:
    """And what is not could not be reached."""
    backends = house.proxy.parts.app._rooms
    registered = {
        (route.path, method)
        for route in backends[Backend.STATUS].fastapi.routes
        for method in route.methods
    }
    known = {
        (route.path, method)
        for route, method in ROWS
        if route.backend in (Backend.STATUS, Backend.QUEUE)
    }
    assert registered <= known
    assert known <= registered | {(path, "HEAD") for path, _ in registered}


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
async def test_a_wrong_method_names_the_right_ones(house: House, method: str) -> None:
    for path, allowed in (
        ("/v1/models", "GET, HEAD"),
        ("/v2/default/run", "POST"),
        ("/livez", "GET, HEAD"),
    ):
        async with house.proxy.http.request(
            method, path, headers={"Authorization": KEYS["bob"]}
        ) as response:
            assert response.status == 405
            assert response.headers["allow"] == allowed
            assert "error" in await response.json()


@pytest.mark.parametrize(
    "path", ["/docs", "/v2/default/nothing", "/v1/nothing", "/x", "/v2/default/worker"]
)
async def test_a_missing_route_says_so_before_it_asks_for_a_key(house: House, path: str) -> None:
    async with house.proxy.http.get(path) as response:
        assert response.status in {404, 405}
        assert "error" in await response.json()


async def test_two_keys_are_ambiguous_but_where_the_guide_sends_two(house: House) -> None:
    def headers(*keys: str) -> list[tuple[str, str]]:
        return [("Authorization", key) for key in keys]

    for given, status in ((("wrong", KEYS["bob"]), 200), (("wrong", "worse"), 401)):
        async with house.proxy.http.get(
            "/v2/default/health", headers=CIMultiDict(headers(*given))
        ) as response:
            assert response.status == status
    for path in ("/v1/models", "/health"):
        async with house.proxy.http.get(
            path, headers=CIMultiDict(headers("wrong", KEYS["bob"]))
        ) as response:
            assert response.status == 400
