"""The OpenAPI document is complete and valid."""

from collections.abc import Iterator
from typing import Any

import pytest

from proxy.access.keys import Kind
from proxy.api.errors import ERRORS
from proxy.api.openapi.components import STATUS_DESCRIPTIONS
from proxy.api.openapi.document import document
from proxy.edge.gate import _ENDPOINT, _PARAMETERS, ROUTES

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


def test_the_document_has_exactly_the_client_routes(described: dict[str, Any]) -> None:
    kinds = {(method, route.path): route.kind for route in ROUTES for method in route.methods}
    of_clients = {asked: kind for asked, kind in kinds.items() if kind is not Kind.WORKER}
    found = operations(described)
    assert set(found) == set(of_clients)
    assert {asked: bool(operation["security"]) for asked, operation in found.items()} == {
        asked: kind is Kind.CLIENT for asked, kind in of_clients.items()
    }


@pytest.mark.parametrize("name", ["endpoint", "job", "model"])
def test_patterns_of_path_parameters_match_the_route_table(
    described: dict[str, Any], name: str
) -> None:
    accepted = {"endpoint": _ENDPOINT} | {
        key.strip("{}"): pattern for key, pattern in _PARAMETERS.items()
    }
    assert (
        described["components"]["parameters"][name]["schema"]["pattern"]
        == f"^{accepted[name].pattern}$"
    )


def test_every_reference_has_a_target(described: dict[str, Any]) -> None:
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


def test_operation_ids_are_unique(described: dict[str, Any]) -> None:
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


def test_every_status_of_the_error_table_is_described() -> None:
    """405 is excluded, because it belongs to no operation of the document."""
    assert {row.status for row in ERRORS.values()} - {405} <= set(STATUS_DESCRIPTIONS)


def test_only_operations_that_need_a_key_have_a_401(described: dict[str, Any]) -> None:
    for operation in operations(described).values():
        assert bool(operation["security"]) == ("401" in operation["responses"])


def test_the_document_conforms_to_the_specification(described: dict[str, Any]) -> None:
    pytest.importorskip(
        "schemathesis", reason="needs schemathesis: `make test` installs it with the test tools"
    )
    # The package may be missing.
    from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR  # noqa: PLC0415

    OPENAPI_31_VALIDATOR.validate(described)
