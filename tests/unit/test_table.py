"""The one route table: what is in it, and what a path finds there."""

import pytest

from proxy.access.keys import Kind
from proxy.api.openai.routes import ROUTES as OPENAI_ROUTES
from proxy.api.queue.app import OPERATIONS
from proxy.edge.routes import ROUTES, Backend, Table, backend_of

JOB = "0d0d0d0d-0000-4000-8000-000000000000-u1"


def test_only_four_routes_are_open_to_anybody() -> None:
    assert {route.path for route in ROUTES if route.kind is None} == {
        "/",
        "/livez",
        "/readyz",
        "/ping",
    }


def test_no_path_stands_there_twice() -> None:
    paths = [route.path for route in ROUTES]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_template_leads_to_its_own_row(route) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    path = (
        route.path.replace("{endpoint}", "ep-1")
        .replace("{job}", JOB)
        .replace("{model}", "org/name")
    )
    assert Table().find(path.replace("{call}", f"w-1/{JOB}")) == route


def test_the_rooms_have_all_their_routes_in_it() -> None:
    queue = {
        route.path.removeprefix("/v2/{endpoint}"): route.methods
        for route in ROUTES
        if route.backend is Backend.QUEUE
    }
    assert queue == OPERATIONS
    openai = {route.path for route in ROUTES if route.backend is Backend.OPENAI}
    assert {f"/v2/{{endpoint}}/openai{path}" for path in OPENAI_ROUTES} <= openai
    workers = {route.path for route in ROUTES if route.kind is Kind.WORKER}
    assert workers == {
        route.path for route in ROUTES if route.backend in (Backend.STOCK, Backend.CHANNEL)
    }


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "//",
            "/livez/",
            "/docs",
            "/openapi.yaml",
            "/metrics",
            "/v1",
            "/v1/",
            "/v2",
            "/v2/",
            "/v2/ep",
            "/v2/ep/",
        ),
        *(
            "/v2/ep/run/",
            "/v2/ep/run/x",
            "/v2/ep/status",
            "/v2/ep/status/",
            "/v2/ep/status/a/b",
            "/v2/ep/status/a b",
        ),
        *(
            "/v2/ep/status/a.b",
            "/v2/ep/status/\x00",
            f"/v2/ep/status/{'a' * 81}",
            "/v2/e p/run",
            "/v2//run",
        ),
        *(
            "/v2/ep/../ep/run",
            "/V2/ep/run",
            "/v1/models/a\nb",
            f"/v1/models/{'a' * 257}",
            "/v1/sleep",
        ),
        *(
            "/v2/ep/openai",
            "/v2/ep/openai/",
            "/openai",
            "/rerank",
            "/tokenize",
            "/v2/ep/worker/x",
            "/v2/ep/job-take/",
        ),
        *("/v2/ep/openai/v1/../v1/models", "/v2/" + "/" * 30_000, "/v1/models" + "/" * 30_000),
    ],
    ids=lambda path: repr(path[:40]),
)
def test_what_is_not_in_it_does_not_exist(path: str) -> None:
    assert Table().find(path) is None


def test_openais_clients_are_forgiven_a_slash() -> None:
    found = Table().find("/v1/chat/completions/")
    assert found is not None
    assert found.path == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "room"),
    [
        ("/v1/x", Backend.OPENAI),
        ("/openai/x", Backend.OPENAI),
        ("/v2/ep/openai/x", Backend.OPENAI),
        ("/v2/ep/x", Backend.QUEUE),
        ("/v2/x", Backend.QUEUE),
        ("/x", Backend.STATUS),
    ],
)
def test_a_missing_path_is_refused_in_the_words_of_its_neighbours(path: str, room: Backend) -> None:
    assert backend_of(path) is room
