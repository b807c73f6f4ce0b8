"""What people and load balancers ask about the proxy itself: FastAPI, off the hot path."""

from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from proxy.api.dialects import OPENAI
from proxy.api.errors import ApiError
from proxy.api.jobs.operations import JobsApi, refusal
from proxy.jobs.model import EndpointId
from proxy.service.endpoints import Endpoints
from proxy.service.fleet import Fleet
from proxy.service.intake import Intake
from proxy.store.base import JobStore

METHOD_NOT_ALLOWED = 405


def status_app(endpoints: Endpoints, fleet: Fleet, intake: Intake, store: JobStore, jobs: JobsApi) -> FastAPI:
    """`/`, `/livez`, `/readyz`, `/health`, `/ping`, and OpenAI's error object for every other path."""
    app = FastAPI(title="vllm-serverless", version=_version(), docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def root() -> dict[str, object]:
        """What this is and where its API begins."""
        return {"name": "vllm-serverless", "version": _version(), "openai": "/v1", "ready": "/readyz"}

    @app.api_route("/livez", methods=["GET", "HEAD"])
    async def livez() -> dict[str, str]:
        """200 as long as the event loop turns."""
        return {"status": "ok"}

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    @app.api_route("/ping", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        """200 once a worker can serve; 503, and why, before that and while the proxy shuts down."""
        ready = [endpoint.id for endpoint in endpoints if fleet.is_ready(endpoint.id)]
        if intake.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse(
            {"status": "ok" if ready else "no worker is ready", "endpoints": ready}, 200 if ready else 503
        )

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, object]:
        """Jobs and workers, endpoint by endpoint."""
        return {"status": "ok", "endpoints": {one.id: await _health(one.id, fleet, store) for one in endpoints}}

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        """OpenAI's error object, here too."""
        code = "method_not_allowed" if error.status_code == METHOD_NOT_ALLOWED else "not_found"
        if request.url.path.startswith("/v2/"):
            allow = (error.headers or {}).get("Allow")
            sentence = f"There is no {request.method} {request.url.path} here."
            return refusal(ApiError(code, sentence, allow=allow))
        told = ApiError(code, f"There is no {request.method} {request.url.path} here.")
        headers = {name.decode(): value.decode() for name, value in told.headers()} | dict(error.headers or {})
        return Response(OPENAI.error(told), told.row.status, headers, media_type="application/json")

    app.include_router(jobs.router())
    return app


async def _health(endpoint_id: EndpointId, fleet: Fleet, store: JobStore) -> dict[str, object]:
    counts = await store.counts(endpoint_id)
    workers = fleet.of(endpoint_id)
    return {
        "jobs": {"inQueue": counts.in_queue, "inProgress": counts.in_progress},
        "workers": {
            "ready": sum(worker.is_ready for worker in workers),
            "running": sum(bool(worker.holds) for worker in workers),
            "initializing": sum(not worker.is_ready for worker in workers),
        },
    }


def _version() -> str:
    try:
        return version("vllm-serverless")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
