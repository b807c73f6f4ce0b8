"""The fast lane: the plain OpenAI call, from its complete request to its response, without a task.

Most calls are plain: POST with a small JSON body over HTTP/1.1, header fields without a meaning for
the proxy, a model that is served, a free slot at a worker, and a run that ends well. For those,
ASGI costs more than everything else: a scope, a task, a future for each wait. So the protocol of
the connection (`edge.lane_protocol`) gives such a request to `FastLane`. The checks are those of
every call (`CallChecks`), and the job is the same record. Its mailbox is a `FastCall`, which writes
what arrives at the end of the same turn of the event loop.

Everything unusual falls through to the application, with the same result for the client:
  before the job exists   any other method, route, version or header field; a body above 64 KB; a
                          check that fails; a job that has to wait
  afterwards (`resume`)   a heartbeat is due, the run is lost, released or refused, an answer above
                          64 KB, header fields of the engine, a pipelined request
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from proxy.access.keys import Principal
from proxy.access.limits import BudgetError, LimitedError, Share
from proxy.api.errors import ApiError
from proxy.api.http import JSON_TYPE, Routing, peek_small
from proxy.api.idempotency import RETRY_COUNT_HEADER, Repetition
from proxy.api.openai.app import OpenAi
from proxy.api.openai.checks import (
    READ_TIMEOUT_HEADERS,
    CallChecks,
    client_timeout,
    engine_fields,
    queue_timeout_of,
)
from proxy.api.openai.dialects import ANTHROPIC
from proxy.api.openai.fast_call import CallFacts, FastCall, LaneConnection, Turn
from proxy.api.openai.retries import CallIdentity
from proxy.api.openai.routes import AnsweredBy, OpenAiRoute
from proxy.api.openai.stream_events import HeartbeatForm
from proxy.jobs.model import Request
from proxy.service.admission import DrainingError, QueueFullError
from proxy.service.dispatch import Dispatch
from proxy.service.interactive import InteractiveJobs
from proxy.wire.fields import Fields
from proxy.wire.sse import BYTE_ORDER_MARK

BODY_MAX_BYTES = 64 * 1024
# Without a meaning for the proxy, or handled here. A request with any other field falls through.
FIELDS = frozenset(
    (
        b"host", b"connection", b"content-length", b"content-type", b"authorization",
        b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"traceparent",
        b"tracestate", b"cache-control", b"pragma", b"priority", b"dnt", b"via", b"forwarded",
        b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port",
        b"x-real-ip", b"openai-organization", b"openai-project", b"openai-beta",
        b"anthropic-version", b"anthropic-beta", b"sec-fetch-mode", b"x-stainless-lang",
        b"x-stainless-package-version", b"x-stainless-os", b"x-stainless-arch",
        b"x-stainless-runtime", b"x-stainless-runtime-version", b"x-stainless-async",
        b"x-stainless-raw-response", b"x-stainless-helper-method", b"x-stainless-retry-count",
        *READ_TIMEOUT_HEADERS,
    )
)  # fmt: skip
KEEP_ALIVE = b"keep-alive"
REFUSALS = (ApiError, LimitedError, BudgetError, DrainingError, QueueFullError)


class Admitted(NamedTuple):
    """The meaning of the head of a call: its target, its caller, its route, the endpoint that its
    path names, and what its engine receives of it.
    """

    target: bytes
    principal: Principal
    route: OpenAiRoute
    endpoint: str | None
    content_type: str
    fields: Fields
    # The seconds without a byte that the client accepts.
    timeout: float | None
    # None: no client repeats the call.
    repetition: Repetition | None


class FastLane:
    """Starts the calls. Implements `CallEnds`.

    `admit` returns the routing of a path with these header fields, or None if it has no call of
    the OpenAI API or is refused. `application` continues calls that leave the lane.
    """

    def __init__(
        self,
        admit: Callable[[str, Sequence[tuple[bytes, bytes]]], Routing | None],
        checks: CallChecks,
        dispatch: Dispatch,
        interactive: InteractiveJobs,
        new_id: Callable[[], str],
        application: OpenAi,
    ) -> None:
        self._admit = admit
        self._checks = checks
        self._dispatch = dispatch
        self._interactive = interactive
        self._new_id = new_id
        self._application = application
        self._turn = Turn()

    def admit(self, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> Admitted | None:
        """Return the meaning of the head of a POST request, or None if it is not plain.

        It does not depend on the value of `Content-Length`.
        """
        seen = dict(fields)
        content_type = seen.get(b"content-type", b"")
        if (
            len(seen) != len(fields)
            or not FIELDS.issuperset(seen)
            or b"content-length" not in seen
            or seen.get(b"connection", KEEP_ALIVE).lower() != KEEP_ALIVE
            or content_type.partition(b";")[0].strip().lower() != JSON_TYPE
            or seen.get(RETRY_COUNT_HEADER, b"0") != b"0"
            or b"?" in target
            or b"%" in target
        ):
            return None
        routing = self._admit(target.decode("latin-1"), fields)
        if routing is None or routing.openai is None or routing.principal is None:
            return None
        route = routing.openai
        if route.is_form or route.answered_by is not AnsweredBy.WORKER:
            return None
        return Admitted(
            target,
            routing.principal,
            route,
            routing.parameters.endpoint,
            content_type.decode("latin-1"),
            engine_fields(seen),
            client_timeout(seen),
            Repetition(None, 0) if RETRY_COUNT_HEADER in seen else None,
        )

    def begin(self, connection: LaneConnection, admitted: Admitted, body: bytes) -> FastCall | None:
        """Start a call with this head; None: the application has to handle it."""
        share = self._checks.limits.bodies.share(admitted.principal.owner)
        call = None
        try:
            share.grow(len(body))
            call = self._start(connection, admitted, body.removeprefix(BYTE_ORDER_MARK), share)
        except REFUSALS:
            # The application answers with the error.
            pass
        finally:
            if call is None:
                share.give_back()
        return call

    # `CallEnds`

    def end(self, call: FastCall) -> None:
        self._interactive.hang_up(call)
        call.facts.share.give_back()
        call.facts.leave()

    def lose(self, call: FastCall) -> None:
        if call.facts.identity is not None:
            self._application.retries.adopt(call.facts.identity, call, call)
        self.end(call)

    async def resume(self, call: FastCall, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._application.resume(call, scope, receive, send)
        finally:
            self.end(call)

    def _start(
        self, connection: LaneConnection, admitted: Admitted, body: bytes, share: Share
    ) -> FastCall | None:
        """Check a call and hand its job out; None, or one of `REFUSALS`, if that is not possible
        at once.
        """
        checks = self._checks
        principal = admitted.principal
        route = admitted.route
        seen = peek_small(body)
        named = checks.named_endpoint(admitted.endpoint) or checks.only_endpoint()
        endpoint = checks.find(named, seen.model)
        if endpoint is None:
            return None
        checks.check_route(endpoint, seen.model, route)
        intervals = checks.heartbeats(
            None, admitted.timeout, is_streaming=seen.is_streaming, can_be_padded=False
        )
        form = intervals.form if intervals else HeartbeatForm.OFF
        if seen.is_streaming and form in route.dialect.noted_forms:
            return None
        checks.admit(endpoint)
        worker = self._dispatch.free_worker(endpoint.id, light=route.is_light)
        if worker is None:
            return None
        now = connection.loop.time()
        leave, limits = checks.count(principal, endpoint, now)
        request = Request("POST", route.path, admitted.content_type, body, admitted.fields)
        request_id = b"req_" + self._new_id().encode()
        if route.dialect is ANTHROPIC:
            limits = [(b"request-id", request_id), *limits]
        identity = None
        if admitted.repetition is not None:
            identity = CallIdentity(principal.owner, endpoint.id, request, admitted.repetition)
        facts = CallFacts(
            route,
            checks.model_of(endpoint, seen.model),
            seen.model or "",
            principal.owner,
            request_id,
            limits,
            intervals,
            seen.is_streaming,
            identity,
            share,
            leave,
        )
        call = self._interactive.begin(
            endpoint,
            principal.owner,
            request,
            worker.id,
            light=route.is_light,
            queue_timeout=queue_timeout_of(admitted.timeout) if intervals is None else None,
            make=partial(FastCall, facts, connection, self),
        )
        self._dispatch.offer(worker, call, now)
        call.start(self._turn, now)
        return call
