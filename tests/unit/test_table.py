"""The route table: its rows, and the row of a path."""

from collections.abc import Callable

import pytest

from proxy.access.keys import Kind
from proxy.api.errors import ApiError
from proxy.api.openai.dialects import ANTHROPIC, OPENAI
from proxy.api.openai.routes import ROUTES as OPENAI_ROUTES
from proxy.api.queue.app import OPERATIONS
from proxy.api.queue.response import queue_error
from proxy.edge.gate import ROUTES, Backend, Table, backend_of

JOB = "0d0d0d0d-0000-4000-8000-000000000000-u1"


def test_only_four_routes_are_public() -> None:
    assert {route.path for route in ROUTES if route.kind is None} == {
        "/",
        "/livez",
        "/readyz",
        "/ping",
    }


def test_every_path_is_unique() -> None:
    paths = [route.path for route in ROUTES]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_template_matches_its_own_row(route) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    path = (
        route.path.replace("{endpoint}", "ep-1")
        .replace("{job}", JOB)
        .replace("{model}", "org/name")
    )
    found = Table().find(path.replace("{call}", f"w-1/{JOB}"))
    assert found is not None
    assert found.route == route
    values = {"endpoint": "ep-1", "job": JOB, "model": "org/name", "call": f"w-1/{JOB}"}
    assert found.parameters._asdict() == {
        name: value if f"{{{name}}}" in route.path else None for name, value in values.items()
    }


def test_the_table_has_all_routes_of_the_backends() -> None:
    queue = {
        route.path.removeprefix("/v2/{endpoint}"): route.methods
        for route in ROUTES
        if route.backend is Backend.QUEUE
    }
    assert queue == OPERATIONS
    openai = {route.path: route.openai for route in ROUTES if route.backend is Backend.OPENAI}
    assert {
        f"/v2/{{endpoint}}/openai{path}": route for path, route in OPENAI_ROUTES.items()
    }.items() <= openai.items()
    assert all((route.openai is not None) == (route.path in openai) for route in ROUTES)
    workers = {route.path for route in ROUTES if route.kind is Kind.WORKER}
    assert workers == {
        route.path for route in ROUTES if route.backend in (Backend.STOCK, Backend.CHANNEL)
    }


UNKNOWN_PATHS = [
    "", "//", "/livez/", "/docs", "/openapi.yaml", "/metrics", "/v1", "/v1/", "/v2", "/v2/",
    "/v2/ep", "/v2/ep/", "/v2/ep/run/", "/v2/ep/run/x", "/v2/ep/status", "/v2/ep/status/",
    "/v2/ep/status/a/b", "/v2/ep/status/a b", "/v2/ep/status/a.b", "/v2/ep/status/\x00",
    f"/v2/ep/status/{'a' * 81}", "/v2/e p/run", "/v2//run", "/v2/ep/../ep/run", "/V2/ep/run",
    "/v1/models/a\nb", f"/v1/models/{'a' * 257}", "/v1/sleep", "/v2/ep/openai", "/v2/ep/openai/",
    "/openai", "/embed", "/v2/score", "/v2/rerank/x", "/v2/{endpoint}/run", "/v2/ep/worker/x",
    "/v2/ep/job-take/",
    "/v2/ep/openai/v1/../v1/models", "/v2/" + "/" * 30_000, "/v1/models" + "/" * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN_PATHS, ids=lambda path: repr(path[:40]))
def test_an_unknown_path_has_no_route(path: str) -> None:
    assert Table().find(path) is None


def test_a_trailing_slash_is_accepted_by_the_openai_api() -> None:
    found = Table().find("/v1/chat/completions/")
    assert found is not None
    assert found.route.path == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "backend"),
    [
        ("/v1/x", Backend.OPENAI),
        ("/openai/x", Backend.OPENAI),
        ("/v2/ep/openai/x", Backend.OPENAI),
        ("/v2/ep/x", Backend.QUEUE),
        ("/v2/x", Backend.QUEUE),
        ("/x", Backend.STATUS),
    ],
)
def test_an_unknown_path_is_refused_by_the_backend_of_its_prefix(
    path: str, backend: Backend
) -> None:
    assert backend_of(path) is backend


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("/v1/chat/completions/", OPENAI.error),
        ("/v1/messages", ANTHROPIC.error),
        ("/openai/v1/messages/count_tokens", ANTHROPIC.error),
        ("/v2/ep/openai/v1/messages/", ANTHROPIC.error),
        ("/v2/e p/openai/v1/messages", OPENAI.error),
        ("/v1/messages/x", OPENAI.error),
        ("/v2/ep/openai/x", OPENAI.error),
        ("/v2/ep/openai", queue_error),
        ("/v2/ep/run", queue_error),
        ("/v2/ep/worker", queue_error),
        ("/v2/ep/job-take/w-1", queue_error),
        ("/v2/x", queue_error),
        ("/health", OPENAI.error),
        ("/x", OPENAI.error),
        ("", OPENAI.error),
    ],
)
def test_an_error_has_the_format_of_its_path(
    path: str, refusal: Callable[[ApiError], bytes]
) -> None:
    error = ApiError("not_found", "The error.")
    assert Table().render_error(path, error) == refusal(error)
