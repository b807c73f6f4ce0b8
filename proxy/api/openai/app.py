"""The OpenAI API: a plain ASGI application. Who asks, for what, and then a job or the list of models."""

import re
from collections.abc import Callable
from typing import Any

import structlog

from proxy.access.body_budget import Budget
from proxy.access.keys import Principal
from proxy.access.rate_limits import Limits
from proxy.api.body import FORM, JSON, ClientGoneError, peek, read_body, require_type
from proxy.api.errors import CLIENT_ERRORS, ApiError, limit_headers, to_api_error
from proxy.api.numbers import read_seconds
from proxy.api.openai.dialects import ANTHROPIC
from proxy.api.openai.form import peek_form
from proxy.api.openai.models import model_card, model_list
from proxy.api.openai.relay import HeartbeatIntervals, Relay
from proxy.api.openai.reply import Reply
from proxy.api.openai.routes import BODY_BYTES, AnsweredBy, Match, match, unknown_route
from proxy.api.sending import abort_of
from proxy.jobs.model import Request
from proxy.service.admission import Admission
from proxy.service.endpoints import Endpoint, Endpoints
from proxy.service.interactive import InteractiveJobs

log = structlog.get_logger()

PATIENCE = b"x-stainless-read-timeout"  # the Python SDK's: it gives up after so many seconds
PATIENCE_MARGIN = 5.0
MOST_PATIENCE = 31_536_000.0  # seconds, a year: no job waits for longer
MODEL_SHOWN = 200  # characters of a model's name in an error

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,80}")


class OpenAi:
    """Answers the routes of `api.routes`."""

    def __init__(
        self,
        endpoints: Endpoints,
        interactive: InteractiveJobs,
        admission: Admission,
        limits: Limits,
        bodies: Budget,
        answers: Budget,
        new_id: Callable[[], str],
        intervals: HeartbeatIntervals,
    ) -> None:
        self._endpoints = endpoints
        self._interactive = interactive
        self._admission = admission
        self._limits = limits
        self._bodies = bodies
        self._answers = answers
        self._new_id = new_id
        self._intervals = intervals

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request of a caller who may ask."""
        headers = dict(scope["headers"])
        found = match(scope["path"])
        if found is None:
            await self.refuse(scope, receive, send, unknown_route(scope["path"]))
            return
        reply = self._reply(scope, headers, found, send)
        principal: Principal = scope["state"]["principal"]
        try:
            endpoint = self._named_endpoint(found)
            if found.route.answered_by is AnsweredBy.MODELS:
                await self._models(reply, found, endpoint)
            else:
                await self._call(scope, receive, reply, headers, found, endpoint, principal)
        except CLIENT_ERRORS as error:
            await reply.error(to_api_error(error))
        except ClientGoneError:
            pass
        except (
            Exception
        ):  # a bug of ours: the client gets an error it can read, the log gets the rest
            log.exception("api.bug", path=scope["path"])
            if reply.has_begun and not reply.is_stream:
                raise  # half an answer is out: uvicorn closes the connection, which is all that can still be said
            await reply.error(
                ApiError("internal_error", "This server failed. The error is in its log.")
            )

    async def refuse(self, scope: Any, _: Any, send: Any, error: ApiError) -> None:
        """Answer a request that is not let in, in the dialect of its path."""
        await self._reply(scope, dict(scope["headers"]), match(scope["path"]), send).error(error)

    def _reply(
        self, scope: Any, headers: dict[bytes, bytes], found: Match | None, send: Any
    ) -> Reply:
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = b"req_" + self._new_id().encode()
        only_head = scope["method"] == "HEAD"
        reply = Reply(
            send,
            [(b"x-request-id", request_id)],
            self._answers,
            abort_of(scope),
            only_head=only_head,
        )
        if found is not None:
            reply.speak(found.route.dialect)
            if found.route.dialect is ANTHROPIC:
                reply.add_header(b"request-id", request_id)  # where its own SDK looks for it
        return reply

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
        """What can be refused without the body is, before it is read; then it is paid for, read, and becomes a job."""
        content_type = headers.get(b"content-type", b"")
        require_type(content_type, FORM if found.route.is_form else JSON)
        chosen, leave = endpoint or self._endpoints.only(), None
        try:
            if chosen is not None:
                leave = self._count(principal, chosen, reply)
                await self._admission.check(chosen)
            with self._bodies.share(principal.key_id) as share:
                body = await read_body(receive, headers, BODY_BYTES, share)
                seen = peek_form(content_type, body) if found.route.is_form else await peek(body)
                if leave is None and (chosen := self._endpoints.having(seen.model)) is not None:
                    leave = self._count(principal, chosen, reply)
                if chosen is None or (
                    seen.model is not None and not self._endpoints.serves(chosen, seen.model)
                ):
                    raise _unknown(seen.model or "", chosen)
                request = Request("POST", found.path, content_type.decode("latin-1"), body)
                job, mailbox = await self._interactive.call(
                    chosen,
                    principal.owner,
                    request,
                    light=found.route.is_light,
                    patience=_patience(headers),
                )
                reply.add_header(b"x-job-id", job.id.encode())
                mailbox.abort = abort_of(scope)
                intervals = self._intervals if seen.is_streaming else None
                await Relay(self._interactive, job, mailbox, reply, intervals=intervals).run(
                    receive
                )
        finally:
            if leave is not None:
                leave()

    def _count(self, principal: Principal, endpoint: Endpoint, reply: Reply) -> Callable[[], None]:
        """Count a call, until what this gives is called; the headers say what is left."""
        leave, left = self._limits.enter(principal.key_id, endpoint.id, "openai")
        for name, value in limit_headers(left):
            reply.add_header(name, value)
        return leave


def _patience(headers: dict[bytes, bytes]) -> float | None:
    """Return how long the client waits at most, as its SDK says it: its job need not wait longer, and answers before.

    A value that is not a number of seconds in range says nothing.
    """
    seconds = read_seconds(headers.get(PATIENCE, b""), MOST_PATIENCE)
    return None if seconds is None else max(seconds - PATIENCE_MARGIN, seconds / 2)


def _unknown(model: str, endpoint: Endpoint | None) -> ApiError:
    where = f"endpoint {endpoint.id}" if endpoint is not None else "any endpoint here"
    return ApiError(
        "model_not_found",
        f"The model `{model[:MODEL_SHOWN]}` is not served by {where}. See /v1/models.",
        "model",
    )
