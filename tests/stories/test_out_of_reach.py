"""Routes of the engine's server outside the OpenAI API cannot be reached by clients.

These are routes for administration, development and documentation.
"""

from typing import Any

import pytest
from harness.proxy.server import CHAT, Proxy, chat
from harness.proxy.shared import Line
from harness.tools.waiting import until
from yarl import URL

BASES = ("", "/v1", "/openai", "/openai/v1", "/v2/default/openai", "/v2/default/openai/v1")
# At the root, these are pages of the proxy.
OWN_PAGES = ("/ping", "/health", "/openapi.json")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Routes of vLLM 0.32.
ROUTES = (
    *(
        "sleep",
        "wake_up",
        "is_sleeping",
        "pause",
        "resume",
        "is_paused",
        "abort_requests",
        "collective_rpc",
    ),
    *(
        "server_info",
        "get_world_size",
        "reset_prefix_cache",
        "reset_mm_cache",
        "reset_encoder_cache",
    ),
    *(
        "release_kv_cache_memory",
        "start_profile",
        "stop_profile",
        "load_lora_adapter",
        "unload_lora_adapter",
    ),
    *(
        "scale_elastic_ep",
        "is_scaling_elastic_ep",
        "fault_tolerance/status",
        "fault_tolerance/apply",
    ),
    *(
        "init_weight_transfer_engine",
        "shutdown_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
    ),
    *(
        "finish_weight_update",
        "weight_info",
        "inference/v1/generate",
        "invocations",
        "ping",
        "health",
        "load",
    ),
    *(
        "metrics",
        "version",
        "tokenizer_info",
        "kv_event_sources",
        "generative_scoring",
        "systemone",
    ),
    *("realtime", "cohere/v2/chat", "docs", "redoc", "openapi.json", "docs/oauth2-redirect"),
    *(
        "chat/completions/render",
        "completions/render",
        "responses/resp_1",
    ),
    *("responses/resp_1/cancel", "messages/render"),
)
# The id of a model may contain slashes.
IN_AN_ID = ("/v1/models/../../sleep", "/v1/models/%2e%2e/%2e%2e/sleep")
# Other base paths, and other encodings of such a path; `%2e%2e` is `..`.
DISGUISED = (
    *(
        "/v1/../sleep",
        "/v1/%2e%2e/sleep",
        "/v1/chat/completions/../../../sleep",
        "/openai/%2e%2e/sleep",
        "/v1//sleep",
    ),
    *(
        "/sleep",
        "/collective_rpc",
        "/inference/v1/generate",
        "/v1/tokenize/%2e%2e/sleep",
        "/v1/tokenize%2f..%2fsleep",
    ),
    *(
        "/v2/default/openai/%2e%2e/sleep",
        "/v2/default/openai//sleep",
        "/v2/default/sleep",
        "/v1/tokenize%00/sleep",
    ),
    *(
        "/v1/tokenize;/sleep",
        "/v1/tokenize%3f/sleep",
        "/V1/sleep",
        "//v1/sleep",
        "/v1/sleep/",
        "/v1/./sleep",
    ),
)


async def call(proxy: Proxy, method: str, path: str) -> int:
    """Send a request whose path is not normalized; return its status."""
    body = {"json": {"model": "scripted", "prompt": "a"}} if method != "HEAD" else {}
    async with proxy.http.request(
        method, URL(f"{proxy.url}{path}", encoded=True), **body
    ) as response:
        await response.read()
        return response.status


def jobs(line: Line) -> int:
    """Return the number of jobs that the workers have started."""
    return sum("event=job.started" in one for worker in line.workers for one in worker.lines)


async def taken_by(line: Line, requests: Any) -> int:
    """Check that each request is answered with 404; return the number that became jobs."""
    before = jobs(line)
    for method, path in requests:
        assert await call(line.proxy, method, path) == 404, (method, path)
    async with line.proxy.http.post(CHAT, json=chat()) as response:
        assert response.status == 200
    await until(lambda: jobs(line) > before, what="this one is seen")
    return jobs(line) - before - 1


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
async def test_no_other_route_of_the_engine_can_be_reached(
    line: Line, base: str, method: str
) -> None:
    paths = [path for route in ROUTES if (path := f"{base}/{route}") not in OWN_PAGES]
    assert await taken_by(line, [(method, path) for path in paths]) == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_other_route_of_the_engine_can_be_reached_by_a_disguised_path(
    line: Line, method: str
) -> None:
    paths = DISGUISED + IN_AN_ID if method == "GET" else DISGUISED
    assert await taken_by(line, [(method, path) for path in paths]) == 0
