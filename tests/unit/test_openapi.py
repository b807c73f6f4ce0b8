"""The proxy's own description: complete, and true to the tables it is made of."""

from collections.abc import Iterator
from typing import Any

import pytest

from proxy.access.keys import Kind
from proxy.api.errors import ERRORS
from proxy.api.openapi.components import STATUS_DESCRIPTIONS
from proxy.api.openapi.document import document
from proxy.edge.routes import _ENDPOINT, _PARAMETERS, ROUTES

METHODS = {"get", "head", "post", "put", "patch", "delete", "options"}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document("1.0")


def operations(described: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in described["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def test_it_has_exactly_the_routes_that_clients_are_let_in_by(described: dict[str, Any]) -> None:
    kinds = {(method, route.path): route.kind for route in ROUTES for method in route.methods}
    of_clients = {asked: kind for asked, kind in kinds.items() if kind is not Kind.WORKER}
    found = operations(described)
    assert set(found) == set(of_clients)
    assert {asked: bool(operation["security"]) for asked, operation in found.items()} == {
        asked: kind is Kind.CLIENT for asked, kind in of_clients.items()
    }


@pytest.mark.parametrize("name", ["endpoint", "job", "model"])
def test_a_name_in_a_path_is_what_the_table_lets_in(described: dict[str, Any], name: str) -> None:
    accepted = {"endpoint": _ENDPOINT} | {
        key.strip("{}"): pattern for key, pattern in _PARAMETERS.items()
    }
    assert (
        described["components"]["parameters"][name]["schema"]["pattern"]
        == f"^{accepted[name].pattern}$"
    )


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    found = list(references(described))
    assert found
    for reference in found:
        place: Any = described
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for each in node.values():
            yield from references(each)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def test_every_operation_has_a_name_of_its_own(described: dict[str, Any]) -> None:
    found = operations(described)
    names = {operation["operationId"] for operation in found.values()}
    assert len(names) == len(found)
    linked = [
        link["operationId"]
        for operation in found.values()
        for link in operation["responses"]["200"].get("links", {}).values()
    ]
    assert linked
    assert set(linked) <= names


def test_every_error_of_the_table_has_its_status_there() -> None:
    """But for a wrong method, which no operation of the document has."""
    assert {row.status for row in ERRORS.values()} - {405} <= set(STATUS_DESCRIPTIONS)


def test_only_those_who_need_a_key_can_be_told_so(described: dict[str, Any]) -> None:
    for operation in operations(described).values():
        assert bool(operation["security"]) == ("401" in operation["responses"])


def test_it_is_what_the_specification_asks_for(described: dict[str, Any]) -> None:
    pytest.importorskip(
        "schemathesis", reason="needs schemathesis: `make test` brings it with the test tools"
    )
    from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR  # noqa: PLC0415 - may not be there

    OPENAPI_31_VALIDATOR.validate(described)
