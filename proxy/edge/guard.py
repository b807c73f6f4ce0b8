"""uvicorn's HTTP protocol with a guard in front: what comes is bounded in size and in time before it is a request.

uvicorn itself waits for ever for the rest of a head or a body, takes heads of any size, and writes the refusal of a
pipelined request into the middle of the answer before it. Here a connection is in one of four stages:

  IDLE  nothing has come yet, which has its time, or between two requests, which uvicorn's keep-alive timer ends
  HEAD  a head has begun: it has to be whole in time
  BODY  a body has begun: in each stretch of time it has to bring something; so has what is left of it, for a while,
        when its request was answered early
  OVER  a refusal has been written, or waits for the answer before it; what still comes is dropped, so that the other
        side reads the refusal instead of a reset connection

`ConnectionLimiter` checks the time limits of all connections together; there is no timer per connection.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeAlias, cast

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from proxy.access.keys import Kind, Principal
from proxy.api.errors import ApiError
from proxy.edge.connections import HURRY_SECONDS, ConnectionLimiter, Pace
from proxy.edge.head import (
    HEAD_BYTES,
    Fields,
    Hosts,
    check_head,
    head_size,
    longest_line,
    path_of,
    too_large_head,
)

log = structlog.get_logger()

BYTES_PER_SECOND = 1024
LINGER_SECONDS = 2.0  # a client that was refused gets this long to read it
DISCARD_SECONDS = 10.0  # and one that was answered before its body was here, to get rid of that
FRAMING_BYTES = 64 * 1024  # chunk sizes, extensions and trailers beside a body
FRAMING_SHARE = 8  # and so many for each byte of it: a body in chunks of one byte is odd, but true
HANDSHAKE_LINE_BYTES = (
    8_000  # the WebSocket library takes 8,192 and does not answer a handshake with longer ones
)
UPGRADE_FIELDS = (b"connection", b"upgrade", b"http2-settings")
PIPELINED = 32  # requests that wait for an answer before them

RenderError: TypeAlias = Callable[[str, ApiError], bytes]
"""The JSON body of a refusal, in the words of the API at this path."""
IsWorker: TypeAlias = Callable[[str, Fields], bool]
"""Whether a request (path and fields) is one of a worker with its token."""


class Stage(Enum):
    """Where a connection stands."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    OVER = auto()


IDLE, HEAD, BODY, OVER = Stage


class RequestRefusedError(Exception):
    """Leaves the parser's callbacks; what it is about is in the protocol."""


@dataclass(frozen=True, slots=True)
class EdgeContext:
    """What all connections share."""

    hosts: Hosts
    pace: Pace
    connections: ConnectionLimiter
    tell: RenderError
    is_worker: IsWorker


class GuardProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, edge: EdgeContext, **uvicorns_own: Any) -> None:
        super().__init__(**uvicorns_own)
        self._edge = edge
        self._stage = IDLE
        self._refusal: ApiError | None = None
        self._active: RequestResponseCycle | None = None  # the request that is being answered
        self._is_extra = False  # on a place that is for workers
        self._begun = self._size = 0  # messages in the bytes that just came, and how many these are
        self._fed = self._body = 0  # bytes of this head; of this body with its framing, and without
        self._brought, self._was_paused = 0, False  # bytes of the body in this stretch of time
        self._due = self._whole_by = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connections = self._edge.connections
        connections.enter()
        if connections.size > connections.limit and not connections.evict():
            transport.abort()
            return
        self._is_extra = connections.size > connections.most
        self._wait(
            min(HURRY_SECONDS, self._edge.pace.head) if self._is_extra else self._edge.pace.head
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.connections.leave()
        self._edge.connections.unwatch(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while self._stage is not OVER:
            stage, self._begun, self._size = self._stage, 0, len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self._hand_over(data[upgrade.args[0] :])
                    return
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self._refuse(self._refusal or ApiError("bad_request", "Malformed HTTP request."))
            else:
                self._weigh(stage)
                return

    # The parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stage = HEAD
        self._begun += 1
        self._fed = self._body = self._brought = 0

    def on_headers_complete(self) -> None:
        edge, parser = self._edge, self.parser
        fault = check_head(self.url, parser.get_http_version(), self.headers, edge.hosts)
        upgrades = parser.should_upgrade()
        if upgrades:
            fault = self._check_upgrade() or fault
        if self._fed + self._size > HEAD_BYTES and head_size(self.url, self.headers) > HEAD_BYTES:
            fault = too_large_head()
        if fault is None and len(self.pipeline) >= PIPELINED:
            fault = ApiError(
                "bad_request", f"At most {PIPELINED} requests may wait on one connection."
            )
        is_extra = self._is_extra and edge.connections.size > edge.connections.most
        if fault is None and is_extra and not edge.is_worker(path_of(self.url), self.headers):
            fault = ApiError(
                "too_many_connections", "Too many clients are connected. Try again in a moment."
            )
        if fault is not None:
            self._refusal = fault
            raise RequestRefusedError
        if upgrades and not self._should_upgrade():
            return  # it is served, but see `_without_upgrade`
        super().on_headers_complete()
        if not upgrades:
            self.headers = []  # what comes behind a body are trailers, which nobody here reads
        self._stage, self._fed = BODY, 0
        edge.connections.unwatch(self)

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._brought += len(body)
        super().on_body(body)
        self._was_paused |= self.flow.read_paused

    def on_message_complete(self) -> None:
        if self._stage is BODY:
            super().on_message_complete()
        self._stage = IDLE
        self._edge.connections.unwatch(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._refusal is not None:
            if not self.pipeline and not self._is_answering():
                self._write_refusal(self._refusal)
        elif self._stage is BODY and not self._is_answering():
            self._wait(DISCARD_SECONDS)

    # What is refused

    def look(self, now: float) -> None:
        """The time that this connection was given may be over."""
        if now < self._due:
            return
        if self._stage is HEAD and not self.flow.read_paused:
            self._refuse(
                ApiError("request_timeout", "The head of the request did not come in time.")
            )
        elif self._stage is HEAD:
            self._wait(self._edge.pace.head)
        elif self._stage is not BODY or not self._is_answering():
            self.transport.abort()
        elif now > self._whole_by and not self._is_workers():
            self._refuse(
                ApiError("request_timeout", f"The body took more than {self._edge.pace.whole:g} s.")
            )
        elif self._was_paused or self._brought >= BYTES_PER_SECOND * self._edge.pace.body:
            self._was_paused = self.flow.read_paused
            self._wait(self._edge.pace.body)
        else:
            self._refuse(ApiError("request_timeout", "The body of the request came too slowly."))

    def _weigh(self, stage: Stage) -> None:
        """Bytes have come, and no message ended with them: what is unfinished is bounded, and waited for."""
        if self._begun == (stage is IDLE):
            self._fed += self._size
        if self._stage is HEAD and self._fed > HEAD_BYTES:
            self._refuse(too_large_head())
        elif self._stage is BODY and self._fed > FRAMING_BYTES + FRAMING_SHARE * self._body:
            self._refuse(ApiError("bad_request", "The chunks of the body hold too little."))
        elif self in self._edge.connections or self._stage is IDLE:
            return
        elif self._stage is HEAD:
            self._wait(self._edge.pace.head)
        else:
            self._whole_by = self.loop.time() + self._edge.pace.whole
            self._wait(self._edge.pace.body)

    def _wait(self, seconds: float) -> None:
        self._brought, self._due = 0, self.loop.time() + seconds
        self._edge.connections.watch(self)

    def evict(self) -> bool:
        """Cut this connection, if it is in the way of others and nothing of it is being served."""
        is_served = self._stage is BODY or self._is_answering()
        if not is_served:
            self._edge.connections.unwatch(self)
            self.transport.abort()
        return not is_served

    def _is_workers(self) -> bool:
        """Whether a worker posts this: it may have to wait for room, and its result comes only once."""
        principal: Principal | None = self.cycle.scope["state"].get("principal")
        return principal is not None and principal.kind is Kind.WORKER

    def _is_answering(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Take nothing more from this connection, and say why once what was asked before is answered."""
        is_of_body, self._stage = self._stage is BODY, OVER
        self._refusal = error
        self._edge.connections.unwatch(self)
        if (
            is_of_body and self._active is self.cycle
        ):  # the request that is served has no whole body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
            else:
                self._write_refusal(error)
        elif not self._is_answering():
            self._write_refusal(error)
        elif is_of_body:
            self.pipeline.popleft()

    def _check_upgrade(self) -> ApiError | None:
        """Return why a request that leaves HTTP cannot be served, or None.

        CONNECT upgrades whatever its fields are, so `_without_upgrade` could not end it.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            return ApiError(
                "bad_request", "CONNECT is not supported: this server is not a forward proxy."
            )
        if not self._should_upgrade():
            return None
        if method != b"GET":
            return ApiError("bad_request", "A WebSocket handshake must be a GET request.")
        if self._is_answering():
            return ApiError(
                "bad_request", "A WebSocket handshake cannot be pipelined behind another request."
            )
        if longest_line(self.url, self.headers) > HANDSHAKE_LINE_BYTES:
            return ApiError(
                "head_too_large",
                f"A WebSocket handshake may have lines of {HANDSHAKE_LINE_BYTES} bytes.",
            )
        return None

    def _hand_over(self, rest: bytes) -> None:
        """Let the WebSocket protocol have the connection, and what came behind the handshake."""
        self._edge.connections.leave()
        self._edge.connections.unwatch(self)
        self.handle_websocket_upgrade()
        if rest and not self.transport.is_closing():
            cast("asyncio.Protocol", self.transport.get_protocol()).data_received(rest)

    def _without_upgrade(self) -> bytes:
        """Start a new parser and return the head that was just parsed without its `Upgrade`, to be parsed again.

        A server may ignore `Upgrade` (Java's client asks for HTTP/2 with its first request), but the parser does not
        read a body behind it. The new head has no `Upgrade` field, so it is never sent through here twice.
        """
        kept = [field for field in self.headers if field[0] not in UPGRADE_FIELDS]
        if any(
            name == b"connection" and _has_token(value, b"close") for name, value in self.headers
        ):
            kept.append((b"connection", b"close"))
        fields = b"".join(b"%b: %b\r\n" % field for field in kept)
        line = b"%b %b HTTP/%b\r\n" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._stage = IDLE
        return line + fields + b"\r\n"

    def _write_refusal(self, error: ApiError) -> None:
        log.debug("edge.refused", code=error.code, reason=str(error))
        self._stage = OVER
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        body = self._edge.tell(path_of(getattr(self, "url", b"")), error)
        fields = [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"), *error.headers(),
        ]  # fmt: skip
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(STATUS_LINE[error.row.status] + head + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._wait(LINGER_SECONDS)


def _has_token(value: bytes, token: bytes) -> bool:
    """Whether a comma-separated field has this token, which is in lower case."""
    return token in [one.strip() for one in value.lower().split(b",")]
