"""The OpenAI API: a plain ASGI application. Who asks, for what, and then a job or the list of models."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from proxy.api.body import FORM, JSON, ClientGoneError, peek, read_body, require_type
from proxy.api.dialects import ANTHROPIC
from proxy.api.errors import ApiError, limit_headers, limited
from proxy.api.form import peek_form
from proxy.api.models import model_card, model_list
from proxy.api.relay import Gaps, Relay
from proxy.api.reply import Reply
from proxy.api.routes import BODY_BYTES, Match, Serves, match
from proxy.jobs.model import Request
from proxy.service.endpoints import Endpoint, Endpoints
from proxy.service.intake import DrainingError, Intake, QueueFullError
from proxy.service.keys import Keys, Kind, Principal
from proxy.service.limits import LimitedError, Limits

log = structlog.get_logger()

ABORT = "vllm_serverless.abort"  # the ASGI extension of `api.protocol`: cuts the connection
PATIENCE = b"x-stainless-read-timeout"  # the Python SDK's: it gives up after so many seconds
PATIENCE_MARGIN = 5.0

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,80}")


class OpenAi:
    """Answers the routes of `api.routes`."""

    def __init__(
        self,
        keys: Keys,
        endpoints: Endpoints,
        intake: Intake,
        limits: Limits,
        new_id: Callable[[], str],
        gaps: Gaps,
    ) -> None:
        self._keys, self._endpoints, self._intake, self._limits = keys, endpoints, intake, limits
        self._new_id, self._gaps = new_id, gaps

    async def __call__(self, scope: Any, receive: Any, send: Any) -> bool:
        """Answer a request. False, and nothing sent, when its path is none of this API's."""
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = b"req_" + self._new_id().encode()
        reply = Reply(send, [(b"x-request-id", request_id)], only_head=scope["method"] == "HEAD")
        try:
            found = match(scope["path"], scope["method"])
            if found is None:
                return False
            reply.speak(found.route.dialect)
            if found.route.dialect is ANTHROPIC:
                reply.add_header(b"request-id", request_id)  # where its own SDK looks for it
            principal = self._principal(headers)
            endpoint = self._named_endpoint(found)
            if found.route.serves is Serves.MODELS:
                await self._models(reply, found, endpoint)
            else:
                await self._call(scope, receive, reply, headers, found, endpoint, principal)
        except ApiError as error:
            await reply.error(error)
        except ClientGoneError:
            pass
        except Exception:  # a bug of ours: the client gets an error it can read, the log gets the rest
            log.exception("api.bug", path=scope["path"])
            if reply.has_begun and not reply.is_stream:
                raise  # half an answer is out: uvicorn closes the connection, which is all that can still be said
            await reply.error(ApiError("internal_error", "This server failed. The error is in its log."))
        return True

    def _principal(self, headers: dict[bytes, bytes]) -> Principal:
        key = headers.get(b"authorization") or headers.get(b"x-api-key", b"")  # the second is Anthropic's
        principal = self._keys.authenticate(key.decode("latin-1"), Kind.CLIENT)
        if principal is None:
            raise ApiError("invalid_api_key", "Wrong or missing API key: send `Authorization: Bearer KEY`.")
        return principal

    def _named_endpoint(self, found: Match) -> Endpoint | None:
        if found.endpoint is None:
            return None
        endpoint = self._endpoints.get(found.endpoint)
        if endpoint is None:
            raise ApiError("endpoint_not_found", f"There is no endpoint {found.endpoint!r} here.")
        return endpoint

    async def _models(self, reply: Reply, found: Match, endpoint: Endpoint | None) -> None:
        searched = [endpoint] if endpoint is not None else list(self._endpoints)
        known = [model for one in searched for model in self._endpoints.models(one)]
        if found.model is None:
            await reply.whole(200, JSON, model_list(known))
            return
        for model in known:
            if model.id == found.model:
                await reply.whole(200, JSON, model_card(model))
                return
        raise _unknown(found.model, endpoint)

    async def _call(
        self,
        scope: Any,
        receive: Any,
        reply: Reply,
        headers: dict[bytes, bytes],
        found: Match,
        endpoint: Endpoint | None,
        principal: Principal,
    ) -> None:
        content_type = headers.get(b"content-type", b"")
        require_type(content_type, FORM if found.route.is_form else JSON)
        body = await read_body(receive, headers, BODY_BYTES)
        seen = peek_form(content_type, body) if found.route.is_form else await peek(body)
        chosen = endpoint or self._endpoints.having(seen.model)
        if chosen is None or (seen.model is not None and not self._endpoints.serves(chosen, seen.model)):
            raise _unknown(seen.model or "", chosen)
        with self._limited(principal, chosen, reply):
            request = Request("POST", found.path, content_type.decode("latin-1"), body)
            try:
                job, mailbox = await self._intake.call(
                    chosen, principal.owner, request, light=found.route.is_light, patience=_patience(headers)
                )
            except QueueFullError:
                raise ApiError("queue_full", f"Endpoint {chosen.id} has {chosen.max_queued} jobs waiting.") from None
            except DrainingError:
                raise ApiError("server_draining", "This server is shutting down.") from None
            reply.add_header(b"x-job-id", job.id.encode())
            mailbox.abort = scope.get("extensions", {}).get(ABORT, mailbox.abort)
            gaps = self._gaps if seen.is_streaming else None
            await Relay(self._intake, job, mailbox, reply, gaps=gaps).run(receive)

    @contextmanager
    def _limited(self, principal: Principal, endpoint: Endpoint, reply: Reply) -> Iterator[None]:
        """Count a call, from here to its end; the headers say what is left."""
        try:
            leave, told = self._limits.enter(principal.key_id, endpoint.id, "openai")
        except LimitedError as error:
            raise limited(error) from None
        for name, value in limit_headers(told):
            reply.add_header(name, value)
        try:
            yield
        finally:
            leave()


def _patience(headers: dict[bytes, bytes]) -> float | None:
    """How long the client waits at most, as its SDK says it: its job need not wait longer, and must answer before."""
    try:
        seconds = float(headers[PATIENCE])
    except (KeyError, ValueError):
        return None
    return max(seconds - PATIENCE_MARGIN, seconds / 2) if 0 < seconds < float("inf") else None


def _unknown(model: str, endpoint: Endpoint | None) -> ApiError:
    where = f"endpoint {endpoint.id}" if endpoint is not None else "any endpoint here"
    return ApiError("model_not_found", f"The model `{model}` is not served by {where}. See /v1/models.", "model")
