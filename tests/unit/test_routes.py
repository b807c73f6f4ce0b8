"""The paths of the OpenAI API, and the routes that they match."""

import pytest

from proxy.api.openai.routes import ROUTES, AnsweredBy, OpenAiRoute
from proxy.edge.gate import Table
from worker_vllm.handler import route_of


def find(path: str) -> OpenAiRoute | None:
    found = Table().find(path)
    return None if found is None else found.route.openai


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", None),
        ("/openai/v1/chat/completions", None),
        ("/v2/default/openai/v1/chat/completions", "default"),
        ("/v2/a-b_C9/openai/v1/chat/completions/", "a-b_C9"),
    ],
)
def test_a_route_exists_at_three_base_paths(path: str, endpoint: str | None) -> None:
    found = Table().find(path)
    assert found is not None
    assert found.route.openai is ROUTES["/v1/chat/completions"]
    assert found.parameters.endpoint == endpoint
    assert found.parameters.model is None


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/v2/default/openai/v1/models/Qwen/Qwen3-8B/", "Qwen/Qwen3-8B"),
        ("/openai/v1/models/v1/models/x", "v1/models/x"),
        ("/v1/models/a//", "a/"),
        ("/v1/models//", ""),
        ("/v1/models/", None),
    ],
)
def test_a_model_id_may_contain_slashes(path: str, model: str | None) -> None:
    found = Table().find(path)
    assert found is not None
    assert found.route.openai is ROUTES["/v1/models"]
    assert found.parameters.model == model


@pytest.mark.parametrize(
    "path", ["/", "/health", "/v2/default/run", "/v2/a b/openai/v1/models", "/v1", "/V1/models"]
)
def test_paths_of_other_apis_do_not_match(path: str) -> None:
    assert find(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/sleep",
        "/v1/load_lora_adapter",
        "/openai/collective_rpc",
        "/v2/default/openai/docs",
        "/v1/chat",
        "/v1/../x",
    ],
)
def test_a_path_that_is_not_in_the_table_does_not_match(path: str) -> None:
    assert find(path) is None


@pytest.mark.parametrize("name", ["tokenize", "detokenize", "pooling", "score", "rerank"])
def test_routes_of_vllm_without_v1_have_both_forms(name: str) -> None:
    plain = find(f"/openai/{name}")
    versioned = find(f"/v1/{name}")
    on_endpoint = find(f"/v2/default/openai/{name}")
    assert plain is not None
    assert versioned is not None
    assert on_endpoint is not None
    assert plain.path == on_endpoint.path == f"/{name}"
    assert versioned.path in {f"/{name}", f"/v1/{name}"}


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel"])
def test_stored_responses_are_not_supported(path: str) -> None:
    assert find(path) is None


def test_every_route_is_accepted_by_the_worker() -> None:
    """The tables of the proxy and of the worker list the same paths."""
    engine_paths = {
        route.path for route in ROUTES.values() if route.answered_by is AnsweredBy.WORKER
    }
    assert all(route_of(path) is not None for path in engine_paths)
