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
        ("/chat/completions", None),
        ("/openai/chat/completions/", None),
        ("/v2/default/openai/chat/completions", "default"),
        ("/v1/chat/completions", None),
        ("/openai/v1/chat/completions", None),
        ("/v2/default/openai/v1/chat/completions", "default"),
        ("/v2/a-b_C9/openai/v1/chat/completions/", "a-b_C9"),
    ],
)
def test_a_route_exists_at_three_bases_with_and_without_v1(path: str, endpoint: str | None) -> None:
    found = Table().find(path)
    assert found is not None
    assert found.route.openai is ROUTES["/v1/chat/completions"]
    assert found.parameters.endpoint == endpoint
    assert found.parameters.model is None


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/models/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/models/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/openai/models/v1", "v1"),
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


@pytest.mark.parametrize(
    "name", ["tokenize", "detokenize", "pooling", "classify", "score", "rerank"]
)
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


@pytest.mark.parametrize(
    ("path", "engine_path"),
    [
        ("/v2/embed", "/v2/embed"),
        ("/openai/v2/embed", "/v2/embed"),
        ("/v2/default/openai/v2/embed", "/v2/embed"),
        ("/v2/rerank", "/v2/rerank"),
        ("/rerank", "/rerank"),
        ("/v1/rerank", "/v1/rerank"),
        ("/embeddings", "/v1/embeddings"),
        ("/chat/completions/batch", "/v1/chat/completions/batch"),
        ("/openai/v1/classify", "/classify"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
    ],
)
def test_every_form_leads_to_a_path_of_the_engine(path: str, engine_path: str) -> None:
    route = find(path)
    assert route is not None
    assert route.path == engine_path


def test_every_route_is_accepted_by_the_worker() -> None:
    """The tables of the proxy and of the worker list the same paths."""
    engine_paths = {
        route.path for route in ROUTES.values() if route.answered_by is AnsweredBy.WORKER
    }
    assert all(route_of(path) is not None for path in engine_paths)
