"""The status pages of the proxy, for operators and load balancers: FastAPI, not on the hot path."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from proxy.api.errors import ApiError, RenderError
from proxy.api.openapi.document import document
from proxy.jobs.model import EndpointId
from proxy.service.admission import Admission
from proxy.service.endpoints import Endpoints
from proxy.service.fleet import Fleet
from proxy.service.job_view import JobView

STORE_GONE = {"status": "store gone"}


class StatusApp:
    """Serves `/`, `/livez`, `/readyz`, `/ping`, `/health` and `/openapi.json`."""

    def __init__(
        self,
        endpoints: Endpoints,
        fleet: Fleet,
        admission: Admission,
        view: JobView,
        render_error: RenderError,
    ) -> None:
        self.fastapi = _fastapi(endpoints, fleet, admission, view)
        self._render_error = render_error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request that the gate has authorized."""
        await self.fastapi(scope, receive, send)

    async def refuse(self, scope: Any, receive: Any, send: Any, error: ApiError) -> None:
        """Send `error` as the response to a request that the gate has rejected."""
        headers = {name.decode(): value.decode() for name, value in error.headers()}
        body = self._render_error(scope["path"], error)
        await Response(body, error.row.status, headers, media_type="application/json")(
            scope, receive, send
        )


def _fastapi(endpoints: Endpoints, fleet: Fleet, admission: Admission, view: JobView) -> FastAPI:
    # The handlers return responses: for other values, FastAPI makes models and imports a second
    # version of pydantic, which takes 4 MB.
    app = FastAPI(
        title="vllm-serverless",
        version=_version(),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )

    @app.api_route("/", methods=["GET", "HEAD"])
    async def root() -> Response:
        """Name and version of the server, and the paths where its APIs begin."""
        return JSONResponse(
            {
                "name": "vllm-serverless",
                "version": _version(),
                "openai": "/v1",
                "ready": "/readyz",
            }
        )

    @app.api_route("/livez", methods=["GET", "HEAD"])
    async def livez() -> Response:
        """Liveness check: 200 as long as the event loop runs."""
        return JSONResponse({"status": "ok"})

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    @app.api_route("/ping", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        """Readiness check: 200 if a worker is ready, 503 if none is, the store is gone, or the
        proxy is draining.
        """
        if view.is_store_gone:
            return JSONResponse(STORE_GONE, 503)
        if admission.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        if any(fleet.is_ready(endpoint.id) for endpoint in endpoints):
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "no worker is ready"}, 503)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        """Counts of jobs and workers, per endpoint."""
        if view.is_store_gone:
            return JSONResponse(STORE_GONE, 503)
        counts = {one.id: await _health(one.id, fleet, view) for one in endpoints}
        return JSONResponse({"status": "ok", "endpoints": counts})

    @app.api_route("/openapi.json", methods=["GET", "HEAD"])
    async def openapi() -> Response:
        """The OpenAPI document. FastAPI cannot generate it, because handlers take raw requests."""
        return Response(_described(), media_type="application/json")

    return app


@cache
def _described() -> bytes:
    return msgspec.json.encode(document(_version()))


async def _health(endpoint_id: EndpointId, fleet: Fleet, view: JobView) -> dict[str, object]:
    counts = await view.counts(endpoint_id)
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
    except PackageNotFoundError:
        # A checkout that was never installed.
        return "0+unknown"
