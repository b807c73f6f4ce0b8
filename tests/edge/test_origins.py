"""Without a key, pages of other origins are refused on every client route, method and base path."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from harness.proxy.server import Proxy, serving
from multidict import CIMultiDict
from pydantic import ValidationError

from proxy.access.keys import Kind
from proxy.access.limits import LIMITS
from proxy.edge.gate import ROUTES, WEBSOCKET, Backend, Route, Table
from proxy.settings import Settings

EVIL = "https://evil.example"
NAMED = "https://app.example"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "PROPFIND")
NO_LIMITS = [f"{name}=0" for name in LIMITS]
CLIENT_ROUTES = [route for route in ROUTES if route.kind is Kind.CLIENT]
FOREIGN: list[dict[str, str]] = [
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PREFLIGHT = {
    "Origin": EVIL,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type",
}


@pytest_asyncio.fixture(scope="module", params=["without CORS", "CORS for another page"])
async def keyless(request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    """A proxy without a key, with CORS for one page or for none."""
    origins = [] if request.param == "without CORS" else ["https://App.Example:443/", NAMED]
    async with serving(cors_origin=origins, endpoint=["default=small"], limit=NO_LIMITS) as proxy:
        yield proxy


def filled(route: Route) -> str:
    path = (
        route.path.replace("{endpoint}", "default")
        .replace("{job}", "x")
        .replace("{model}", "org/small")
    )
    return path.replace("{call}", "w-1")


async def ask(proxy: Proxy, method: str, path: str, headers: Any, **more: Any) -> tuple[int, bytes]:
    skipped = ["Content-Type"]
    async with proxy.http.request(
        method, path, headers=headers, skip_auto_headers=skipped, **more
    ) as response:
        assert "access-control-allow-origin" not in response.headers
        return response.status, await response.read()


def code(path: str, body: bytes) -> str:
    """Return the code of an error in the format of its path.

    Errors of the queue API have only a message.
    """
    decoded = json.loads(body)
    found = Table().find(path)
    if path.startswith("/v2/") and (found is None or found.route.openai is None):
        assert list(decoded) == ["error"]
        return "foreign_origin" if "may not use this proxy" in decoded["error"] else str(decoded)
    if path.endswith(("/messages", "/count_tokens")):
        assert decoded["type"] == "error"
        return "foreign_origin" if decoded["error"]["type"] == "permission_error" else str(decoded)
    return str(decoded["error"]["code"])


@pytest.mark.parametrize("backend", [Backend.QUEUE, Backend.STATUS, Backend.OPENAI])
async def test_every_request_of_a_foreign_page_is_refused(keyless: Proxy, backend: Backend) -> None:
    routes = [route for route in CLIENT_ROUTES if route.backend is backend]
    assert routes
    for route in routes:
        path = filled(route)
        asked = [*((method, FOREIGN[0]) for method in METHODS), ("OPTIONS", PREFLIGHT)]
        asked += [(method, headers) for method in route.methods for headers in FOREIGN[1:]]
        asked += [(method, headers | FORM) for method in route.methods for headers in FOREIGN]
        for method, headers in asked:
            data = b'{"input": 1, "model": "small"}' if method == "POST" else None
            status, body = await ask(keyless, method, path, headers, data=data)
            assert status == 403, (method, path, headers, body)
            assert method == "HEAD" or code(path, body) == "foreign_origin"
    async with keyless.http.get("/v2/default/health") as response:
        assert not any((await response.json())["jobs"].values())


async def test_a_trailing_slash_does_not_bypass_the_check(keyless: Proxy) -> None:
    assert (await ask(keyless, "GET", "/v1/models/", FOREIGN[0]))[0] == 403


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_public_routes_are_open_to_all_origins(
    keyless: Proxy, headers: dict[str, str]
) -> None:
    for route in ROUTES:
        if route.kind is None:
            for method in route.methods:
                assert (await ask(keyless, method, route.path, headers))[0] in {200, 503}
    for path in ("/nothing", "/v1/nothing", "/v2/default/nothing"):
        assert (await ask(keyless, "GET", path, headers))[0] == 404


async def test_workers_need_their_token_from_any_origin(keyless: Proxy) -> None:
    """A page does not know the token, so its origin is not checked."""
    assert [route.methods for route in ROUTES if route.backend is Backend.CHANNEL] == [(WEBSOCKET,)]
    path = "/v2/default/worker"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers = {"Origin": EVIL, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} | upgrade
    assert (await ask(keyless, "GET", path, headers))[0] == 401
    assert all(
        route.kind is Kind.WORKER
        for route in ROUTES
        if route.backend in (Backend.STOCK, Backend.CHANNEL)
    )


def pages(port: str) -> list[tuple[bool, list[tuple[str, str]]]]:
    """Return pairs of True if a request is accepted, and its headers."""
    own = f"http://127.0.0.1:{port}"
    secure = f"https://127.0.0.1:{port}"
    return [
        (True, []),
        (True, [("Sec-Fetch-Site", "none")]),
        (True, [("Sec-Fetch-Site", "same-origin")]),
        (True, [("Origin", own)]),
        (True, [("Origin", own.upper())]),
        (True, [("Origin", own), ("Origin", own)]),
        (True, [("Origin", own), ("Sec-Fetch-Site", "cross-site")]),
        (True, [("Origin", NAMED), ("Sec-Fetch-Site", "cross-site")]),
        (True, [("Origin", "HTTPS://APP.example:443")]),
        (True, [("Origin", "chrome-extension://abcdef")]),
        (True, [("Origin", secure), ("X-Forwarded-Proto", "https")]),
        (True, [("Origin", secure), ("X-Forwarded-Proto", "HTTPS, http")]),
        (True, [("Host", "localhost"), ("Origin", "http://localhost:80")]),
        (True, [("Host", "LOCALHOST:80"), ("Origin", "http://localhost")]),
        (
            True,
            [
                ("Host", "localhost"),
                ("Origin", "https://localhost:443"),
                ("X-Forwarded-Proto", "https"),
            ],
        ),
        (True, [("Host", "[::1]:8000"), ("Origin", "http://[::1]:8000")]),
        (False, [("Origin", secure)]),
        (False, [("Origin", own), ("X-Forwarded-Proto", "https")]),
        (False, [("Origin", own), ("X-Forwarded-Proto", "nonsense://")]),
        (False, [("Origin", "http://127.0.0.1")]),
        (False, [("Origin", f"http://localhost:{port}")]),
        (False, [("Origin", f"{own}/")]),
        (False, [("Origin", f"{own}.evil.example")]),
        (False, [("Origin", f"http://evil.example@127.0.0.1:{port}")]),
        (False, [("Origin", f"{own} {EVIL}")]),
        (False, [("Origin", f"{own}, {EVIL}")]),
        (False, [("Origin", own), ("Origin", EVIL)]),
        (False, [("Origin", EVIL), ("Origin", own)]),
        (False, [("Origin", EVIL), ("Sec-Fetch-Site", "same-origin")]),
        (False, [("Origin", "http://app.example")]),
        (False, [("Origin", "https://app.example:8443")]),
        (False, [("Origin", "https://sub.app.example")]),
        (False, [("Origin", "moz-extension://abcdef")]),
        (False, [("Origin", "null")]),
        (False, [("Origin", "NULL")]),
        (False, [("Origin", "")]),
        (False, [("Origin", "file://")]),
        (False, [("Origin", "*")]),
        (False, [("Host", "[::1]:8000"), ("Origin", "http://[::1]:8001")]),
        (False, [("Sec-Fetch-Site", "Cross-Site")]),
        (False, [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")]),
    ]


async def test_only_the_own_origin_and_listed_origins_are_accepted() -> None:
    async with serving(cors_origin=[NAMED, "chrome-extension://abcdef", "null"]) as proxy:
        for is_let_in, headers in pages(proxy.url.rpartition(":")[2]):
            for method, path in (("GET", "/v1/models"), ("POST", "/v2/default/purge-queue")):
                async with proxy.http.request(
                    method, path, headers=CIMultiDict(headers)
                ) as response:
                    assert response.status in ({200, 429} if is_let_in else {403}), (
                        headers,
                        await response.text(),
                    )


async def test_a_body_without_a_content_type_is_json_except_from_a_page() -> None:
    async with serving(limit=NO_LIMITS) as proxy:
        for path in ("/v2/default/run", "/v2/default/runsync?wait=1000"):
            for headers in (
                {"Origin": proxy.url},
                {"Sec-Fetch-Site": "same-origin"},
                {"Sec-Fetch-Site": "none"},
            ):
                assert (await ask(proxy, "POST", path, headers, data=b'{"input": 1}'))[0] == 415
        typed = {"Origin": proxy.url, "Content-Type": "application/json"}
        for headers in (typed, {}):
            status, _ = await ask(proxy, "POST", "/v2/default/run", headers, data=b'{"input": 1}')
            assert status == 200


async def test_with_a_key_the_origin_has_no_effect() -> None:
    async with serving(api_key=["k=client-secret"]) as proxy:
        for headers in FOREIGN:
            with_key = headers | {"Authorization": "client-secret"}
            assert (await ask(proxy, "GET", "/v1/models", headers))[0] == 401
            assert (await ask(proxy, "GET", "/v1/models", with_key))[0] == 200
            status, _ = await ask(proxy, "POST", "/v2/default/run", with_key, data=b'{"input": 1}')
            assert status == 200


async def test_an_operator_may_allow_all_origins() -> None:
    async with serving(cors_origin=["*"]) as proxy:
        for headers in FOREIGN:
            async with proxy.http.get("/v1/models", headers=headers) as response:
                assert response.status == 200


@pytest.mark.parametrize(
    "wrong",
    ["app.example", "https://", "https://app.example/path", "https://a b", "https://*.x", ""],
)
def test_an_invalid_origin_is_rejected_at_the_start(wrong: str) -> None:
    with pytest.raises(ValidationError, match="SCHEME://HOST"):
        Settings(cors_origin=[wrong])


def test_origins_are_kept_as_browsers_write_them() -> None:
    given = [
        "HTTPS://App.Example:443/",
        "http://localhost:3000",
        "app://obsidian.md",
        "*",
        "null",
        "http://[::1]:80",
    ]
    kept = [
        "https://app.example",
        "http://localhost:3000",
        "app://obsidian.md",
        "*",
        "null",
        "http://[::1]",
    ]
    assert Settings(cors_origin=given).cors_origin == kept
