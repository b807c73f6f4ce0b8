"""The OpenAI API, as a plain ASGI application.

The gate has found the route of a request. The request becomes an interactive job of an endpoint, or
is answered from the registry of models.
"""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from proxy.access.keys import Principal
from proxy.access.limits import Share
from proxy.api.errors import BUG, CLIENT_ERRORS, ApiError, to_api_error
from proxy.api.http import (
    FORM_TYPE,
    JSON_TYPE,
    BodySummary,
    ClientGoneError,
    abort_of,
    peek,
    read_body,
    read_json,
    require_type,
    routing_of,
)
from proxy.api.idempotency import REPETITION_HEADERS, read_repetition
from proxy.api.openai.checks import CallChecks, client_timeout, engine_fields, queue_timeout_of
from proxy.api.openai.dialects import ANTHROPIC
from proxy.api.openai.fast_call import FastCall
from proxy.api.openai.form import peek_form
from proxy.api.openai.models import model_card, model_list
from proxy.api.openai.relay import Relay
from proxy.api.openai.reply import Reply
from proxy.api.openai.request_ids import RequestIds
from proxy.api.openai.retries import Retries, identify
from proxy.api.openai.routes import (
    FORM_BODY_MAX_BYTES,
    JSON_BODY_MAX_BYTES,
    AnsweredBy,
    OpenAiRoute,
    unknown_route,
)
from proxy.api.openai.stream_events import HeartbeatForm, StreamedCall
from proxy.api.openai.unserved import explain
from proxy.api.unknown import unknown_model
from proxy.jobs.model import Owner, Request
from proxy.service.clock import Clock, shown
from proxy.service.endpoints import Endpoint, Endpoints
from proxy.service.interactive import InteractiveJobs
from proxy.service.mailbox import Mailbox
from proxy.wire.fields import REQUEST_ID, TO_ENGINE, Fields

log = structlog.get_logger()

# The header with the form of the heartbeats of one call.
HEARTBEAT_HEADER = b"x-heartbeat"


class OpenAi:
    """The ASGI application for the routes of `api.openai.routes`.

    `new_id` returns the ids of requests that bring none.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        interactive: InteractiveJobs,
        checks: CallChecks,
        new_id: Callable[[], str],
        retries: Retries,
        clock: Clock,
    ) -> None:
        self._endpoints = endpoints
        self._interactive = interactive
        self._checks = checks
        self._new_id = new_id
        self._request_ids = RequestIds(new_id)
        self.retries = retries
        self._clock = clock

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request that the gate has authorized."""
        headers = dict(scope["headers"])
        routing = routing_of(scope)
        route = routing.openai
        if route is None:
            await self.refuse(scope, receive, send, unknown_route(scope["path"]))
            return
        reply = self._reply(scope, headers, route, send)
        await self._answer(scope, reply, self._handle(scope, receive, reply, headers, route))

    async def resume(self, call: FastCall, scope: Any, receive: Any, send: Any) -> None:
        """Continue a call that has left the fast lane."""
        facts = call.facts
        share = self._checks.limits.answers.share(facts.owner)
        reply = Reply(send, facts.request_id, share, abort_of(scope))
        reply.set_dialect(facts.route.dialect)
        for name, value in facts.fields:
            reply.add_header(name, value)
        reply.add_header(b"x-job-id", call.job.id.encode())
        if facts.is_streaming:
            form = facts.intervals.form if facts.intervals else HeartbeatForm.OFF
            created_at = shown(self._clock, call.job.created_at) // 1000
            reply.expect_stream(form, StreamedCall(reply.request_id, facts.named_model, created_at))
        if call.has_begun:
            reply.continue_stream()
        relay = Relay(
            self._interactive,
            call,
            reply,
            intervals=facts.intervals,
            explain=partial(explain, facts.model, facts.route.path),
        )
        relay.continue_from(call.written_at, call.last)
        if facts.identity is not None:
            self.retries.adopt(facts.identity, call, reply)
        await self._answer(scope, reply, relay.run(receive))

    async def _answer(self, scope: Any, reply: Reply, work: Coroutine[Any, Any, None]) -> None:
        """Carry out the work for a request; send the error in which it ends."""
        try:
            await work
        except CLIENT_ERRORS as error:
            await reply.error(to_api_error(error))
        except ClientGoneError:
            pass
        except Exception:
            # A bug of the proxy: the client receives an error object, the log the traceback.
            log.exception("api.bug", path=scope["path"])
            if not reply.can_fail:
                # Part of the response was sent. The only remaining signal is to close the
                # connection, which uvicorn does after an exception.
                raise
            await reply.error(ApiError("internal_error", BUG))

    async def _handle(
        self,
        scope: Any,
        receive: Any,
        reply: Reply,
        headers: dict[bytes, bytes],
        route: OpenAiRoute,
    ) -> None:
        routing = routing_of(scope)
        endpoint = self._checks.named_endpoint(routing.parameters.endpoint)
        if route.answered_by is AnsweredBy.MODELS:
            await self._models(reply, routing.parameters.model, endpoint)
        else:
            await self._call(scope, receive, reply, headers, route, endpoint)

    async def refuse(self, scope: Any, _: Any, send: Any, error: ApiError) -> None:
        """Send `error`, in the path's dialect, for a request that the gate has rejected."""
        reply = self._reply(scope, dict(scope["headers"]), routing_of(scope).openai, send)
        await reply.error(error)

    def _reply(
        self, scope: Any, headers: dict[bytes, bytes], route: OpenAiRoute | None, send: Any
    ) -> Reply:
        request_id = headers.get(REQUEST_ID, b"")
        if not TO_ENGINE[REQUEST_ID].fullmatch(request_id):
            request_id = b"req_" + self._new_id().encode()
        only_head = scope["method"] == "HEAD"
        principal = routing_of(scope).principal
        reply = Reply(
            send,
            request_id,
            self._checks.limits.answers.share("" if principal is None else principal.owner),
            abort_of(scope),
            only_head=only_head,
        )
        if route is not None:
            reply.set_dialect(route.dialect)
            if route.dialect is ANTHROPIC:
                # The name of the header that Anthropic's SDKs read.
                reply.add_header(b"request-id", request_id)
        return reply

    async def _models(self, reply: Reply, wanted: str | None, endpoint: Endpoint | None) -> None:
        searched = [endpoint] if endpoint is not None else list(self._endpoints)
        await self._checks.learn(searched)
        known = [model for one in searched for model in self._endpoints.models(one)]
        if wanted is None:
            await reply.whole(200, JSON_TYPE, model_list(known))
            return
        for model in known:
            if model.id == wanted:
                await reply.whole(200, JSON_TYPE, model_card(model))
                return
        raise unknown_model(wanted, endpoint, self._endpoints)

    async def _call(
        self,
        scope: Any,
        receive: Any,
        reply: Reply,
        headers: dict[bytes, bytes],
        route: OpenAiRoute,
        endpoint: Endpoint | None,
    ) -> None:
        """Run a request as an interactive job and relay its output.

        Every check that does not need the body precedes reading it. The body is then charged to
        its budget and read.
        """
        principal = routing_of(scope).caller
        content_type = headers.get(b"content-type", b"")
        require_type(content_type, FORM_TYPE if route.is_form else JSON_TYPE)
        form = _heartbeat_form(headers)
        repetition = None if REPETITION_HEADERS.isdisjoint(headers) else read_repetition(headers)
        chosen = endpoint or self._checks.only_endpoint()
        leave: Callable[[], None] | None = None
        fields: Fields = ()
        mailbox: Mailbox | None = None
        is_over = False
        try:
            if chosen is not None:
                leave = self._count(principal, chosen, reply)
                self._checks.admit(chosen)
            with self._checks.limits.bodies.share(principal.owner) as share:
                body, seen = await _read(route, receive, headers, share)
                chosen = await self._checks.serving(chosen, seen.model)
                leave = leave or self._count(principal, chosen, reply)
                self._checks.check_route(chosen, seen.model, route)
                model = self._checks.model_of(chosen, seen.model)
                fields = engine_fields(headers)
                if REQUEST_ID in headers:
                    fields = self._request_ids.enter(fields)
                request = Request("POST", route.path, content_type.decode("latin-1"), body, fields)
                timeout = client_timeout(headers)
                can_be_padded = scope["http_version"] != "1.0" and not route.is_form
                intervals = self._checks.heartbeats(
                    form, timeout, is_streaming=seen.is_streaming, can_be_padded=can_be_padded
                )
                start = partial(
                    self._start,
                    chosen,
                    principal.owner,
                    request,
                    light=route.is_light,
                    # Heartbeats keep the client from timing out.
                    queue_timeout=queue_timeout_of(timeout) if intervals is None else None,
                )
                if repetition is None:
                    mailbox = start()
                else:
                    identity = await identify(repetition, principal.owner, chosen.id, request)
                    mailbox = self.retries.call(identity, start, reply)
                reply.add_header(b"x-job-id", mailbox.job.id.encode())
                mailbox.abort = abort_of(scope)
                if seen.is_streaming:
                    created_at = shown(self._clock, mailbox.job.created_at) // 1000
                    call = StreamedCall(reply.request_id, seen.model or "", created_at)
                    reply.expect_stream(intervals.form if intervals else HeartbeatForm.OFF, call)
                relay = Relay(
                    self._interactive,
                    mailbox,
                    reply,
                    intervals=intervals,
                    explain=partial(explain, model, route.path),
                )
                await relay.run(receive)
                is_over = mailbox.outcome is not None and mailbox.outcome.answered
        finally:
            if REQUEST_ID in headers:
                has_ended = partial(_has_ended, mailbox)
                self._request_ids.leave(fields, has_ended, is_over=is_over)
            if leave is not None:
                leave()

    def _start(
        self,
        endpoint: Endpoint,
        owner: Owner,
        request: Request,
        *,
        light: bool,
        queue_timeout: float | None,
    ) -> Mailbox:
        """Begin an interactive job."""
        # Again, because reading the body took time.
        self._checks.admit(endpoint)
        return self._interactive.call(
            endpoint, owner, request, light=light, queue_timeout=queue_timeout
        )

    def _count(self, principal: Principal, endpoint: Endpoint, reply: Reply) -> Callable[[], None]:
        """Count a call against the caller's limits and add the rate limit headers.

        Returns the function that ends the call. Raises `LimitedError`.
        """
        leave, headers = self._checks.count(principal, endpoint)
        for name, value in headers:
            reply.add_header(name, value)
        return leave


def _has_ended(mailbox: Mailbox | None) -> bool:
    """Return True if the job of a call, if there is any, has ended."""
    return mailbox is None or mailbox.job.is_terminal


async def _read(
    route: OpenAiRoute, receive: Any, headers: dict[bytes, bytes], share: Share
) -> tuple[bytes, BodySummary]:
    """Return the body of a request, and the fields of it that the proxy reads."""
    if route.is_form:
        body = await read_body(receive, headers, FORM_BODY_MAX_BYTES, share)
        return body, peek_form(headers.get(b"content-type", b""), body)
    body = await read_json(receive, headers, JSON_BODY_MAX_BYTES, share)
    return body, await peek(body)


def _heartbeat_form(headers: dict[bytes, bytes]) -> HeartbeatForm | None:
    """Return the form of heartbeats that the client asks for. Raises `ApiError`."""
    given = headers.get(HEARTBEAT_HEADER)
    if given is None:
        return None
    try:
        return HeartbeatForm(given.decode("latin-1").strip().lower())
    except ValueError:
        known = ", ".join(HeartbeatForm)
        raise ApiError(
            "bad_request", f"`X-Heartbeat` has an unknown value: use one of {known}.", "x-heartbeat"
        ) from None
