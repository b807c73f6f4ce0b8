import pytest

from tests.unit.worker.support import CHAT, AppEngine, app_of
from worker_vllm.asgi import Head, Receive, Request, Scope, Send
from worker_vllm.engine.base import read_models
from worker_vllm.handler import Answer, EngineFailedError, RunLostError, route_of

OPENAI_ERROR = b'data: {"error": {"message": "no"}}\n\n'
RESPONSES_ERROR = b'event: response.failed\ndata: {"type": "response.failed"}\n\n'
MESSAGES_ERROR = b'event: error\ndata: {"type": "error"}\n\n'
TOKEN = b'data: {"choices": [{"delta": {"content": "data: {\\"error\\""}}]}\n\n'

ERRORS = [
    (CHAT, OPENAI_ERROR),
    ("/v1/completions", OPENAI_ERROR),
    ("/v1/responses", RESPONSES_ERROR),
    ("/v1/responses", MESSAGES_ERROR),
    ("/v1/responses/resp_1?stream=true", RESPONSES_ERROR),
    ("/v1/messages", MESSAGES_ERROR),
    ("/v1/audio/transcriptions", OPENAI_ERROR),
]


async def play(engine: AppEngine, path: str) -> tuple[list[Head | bytes], Exception | None]:
    """Return the pieces of the response, and the exception that ended it."""
    pieces: list[Head | bytes] = []
    try:
        async for piece in Answer(engine, Request("POST", path)):
            # The pieces before the exception count.
            pieces += [piece if isinstance(piece, Head) else piece.data]
    except (EngineFailedError, RunLostError) as error:
        return pieces, error
    return pieces, None


@pytest.mark.parametrize(("path", "event"), ERRORS)
async def test_an_error_event_is_forwarded_and_fails_the_job(path: str, event: bytes) -> None:
    pieces, error = await play(AppEngine(app_of(TOKEN, event)), path)

    assert isinstance(error, EngineFailedError)
    assert error.code == "error_event"
    assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == TOKEN + event


@pytest.mark.parametrize(("path", "event"), ERRORS)
async def test_an_error_event_of_a_dead_engine_is_not_forwarded(path: str, event: bytes) -> None:
    pieces, error = await play(AppEngine(app_of(event), dead=True), path)

    assert isinstance(error, RunLostError)
    assert error.code == "engine_dead"
    assert pieces == [Head(200, "text/event-stream")]


async def test_text_that_looks_like_an_error_event_does_not_fail_the_job() -> None:
    _, error = await play(AppEngine(app_of(TOKEN, TOKEN)), CHAT)

    assert error is None


async def test_an_error_in_a_plain_answer_is_judged_by_its_status() -> None:
    pieces, error = await play(
        AppEngine(app_of(b'{"error": 1}', status=400, content_type="application/json")), CHAT
    )

    assert isinstance(error, EngineFailedError)
    assert error.code == "http_400"
    assert pieces == [Head(400, "application/json"), b'{"error": 1}']


@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_status_of_a_dead_engine_is_not_forwarded(status: int) -> None:
    pieces, error = await play(AppEngine(app_of(b"{}", status=status), dead=True), CHAT)

    assert isinstance(error, RunLostError)
    assert error.code == "engine_dead"
    assert pieces == []


async def test_an_incomplete_response_is_lost() -> None:
    pieces, error = await play(AppEngine(app_of(TOKEN, whole=False)), CHAT)

    assert isinstance(error, RunLostError)
    assert (error.code, str(error)) == (
        "worker_lost",
        "the engine failed in the middle of its answer",
    )
    assert pieces[-1] == TOKEN


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_client_does_not_receive_the_text_of_an_exception(has_begun: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if has_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("secret")

    _, error = await play(AppEngine(app), CHAT)
    when = "in the middle of its answer" if has_begun else "before it answered"
    assert isinstance(error, RunLostError)
    assert str(error) == f"the engine failed {when}"


ADMIN = (
    "/sleep /collective_rpc /reset_prefix_cache /v1/load_lora_adapter /docs /openapi.json "
    "/metrics /inference/v1/x /"
)


@pytest.mark.parametrize(
    "path", [*ADMIN.split(), "/v1/models/../../sleep", "/v1/chat/completions/"]
)
async def test_a_job_cannot_reach_admin_routes(path: str) -> None:
    pieces, error = await play(AppEngine(app_of(b"secret")), path)

    assert isinstance(error, EngineFailedError)
    assert isinstance(pieces[0], Head)
    assert pieces[0].status == 404
    assert b"secret" not in b"".join(piece for piece in pieces if isinstance(piece, bytes))


async def test_models_are_announced_with_the_routes_of_the_engine() -> None:
    body = b'{"data": [{"id": "base"}, {"id": "adapter", "parent": "base"}]}'
    engine = AppEngine(app_of(body, content_type="application/json"))
    engine.known = {"/v1/embeddings": frozenset(), "/pooling": frozenset()}

    models = await read_models(engine)

    assert [(model.id, model.routes) for model in models] == [
        ("base", ["/pooling", "/v1/embeddings"]),
        ("adapter", ["/pooling", "/v1/embeddings"]),
    ]


ALLOWED = (
    "/v1/embeddings /v2/embed /pooling /classify /score /v1/score /rerank /v2/rerank /tokenize "
    "/v1/chat/completions/batch /v1/messages/count_tokens /version"
)


@pytest.mark.parametrize(
    "path", [*ALLOWED.split(), "/v1/responses/resp_1/cancel", "/v1/models", "/health"]
)
def test_inference_routes_are_known(path: str) -> None:
    assert route_of(path) is not None
