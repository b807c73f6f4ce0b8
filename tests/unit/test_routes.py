"""The paths of the OpenAI API, and the routes that they match."""

import pytest

from proxy.api.openai.routes import ROUTES, AnsweredBy, match
from worker_vllm.handler import route_of


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
    found = match(path)
    assert found is not None
    assert (found.path, found.endpoint) == ("/v1/chat/completions", endpoint)


def test_a_model_id_may_contain_slashes() -> None:
    found = match("/v1/models/Qwen/Qwen3-8B")
    assert found is not None
    assert found.model == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    "path", ["/", "/health", "/v2/default/run", "/v2/a b/openai/v1/models", "/v1", "/V1/models"]
)
def test_paths_of_other_apis_do_not_match(path: str) -> None:
    assert match(path) is None


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
    assert match(path) is None


@pytest.mark.parametrize("name", ["tokenize", "detokenize", "pooling", "score", "rerank"])
def test_routes_of_vllm_without_v1_have_both_forms(name: str) -> None:
    plain = match(f"/openai/{name}")
    versioned = match(f"/v1/{name}")
    on_endpoint = match(f"/v2/default/openai/{name}")
    assert plain is not None
    assert versioned is not None
    assert on_endpoint is not None
    assert plain.path == on_endpoint.path == f"/{name}"
    assert versioned.path in {f"/{name}", f"/v1/{name}"}


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel"])
def test_stored_responses_are_not_supported(path: str) -> None:
    assert match(path) is None


def test_every_route_is_accepted_by_the_worker() -> None:
    """The tables of the proxy and of the worker list the same paths."""
    engine_paths = {
        route.path for route in ROUTES.values() if route.answered_by is AnsweredBy.WORKER
    }
    assert all(route_of(path) is not None for path in engine_paths)
