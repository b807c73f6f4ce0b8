"""The guard: uvicorn's HTTP protocol, with limits on the size and the time of incoming data.

uvicorn alone waits without a timeout for the rest of a head or a body, accepts heads of any size,
and writes the refusal of a pipelined request into the middle of the previous response. Here a
connection is in one of four stages:

  IDLE  nothing has been received yet (a time limit applies), or the connection is between two
        requests (uvicorn's keep-alive timer applies)
  HEAD  the beginning of a head has been received; the whole head must arrive in time
  BODY  the head is complete; the body must arrive at a minimum rate. If the request was answered
        before its body was complete, the rest is read and discarded for a while
  OVER  a refusal has been written, or waits for the response before it. Data that still arrives is
        dropped, so that the client reads the refusal instead of a connection reset

`ConnectionLimiter` checks the deadlines of all connections, without a timer per connection.
"""

import asyncio
from enum import Enum, auto
from typing import Any, cast

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from proxy.access.keys import Kind
from proxy.api.errors import ApiError
from proxy.api.http import render_fields, routing_of
from proxy.edge.connections import RESERVED_HEAD_SECONDS
from proxy.edge.context import EdgeContext
from proxy.edge.head import (
    HEAD_MAX_BYTES,
    check_head,
    head_size,
    longest_line,
    path_of,
    read_target,
    too_large_head,
    without_upgrade,
)
from proxy.edge.lane_protocol import LaneProtocol
from proxy.edge.protocol import HttpProtocol, WatchedProtocol

log = structlog.get_logger()

MIN_BODY_BYTES_PER_SECOND = 1024
# Time for a refused client to read the refusal before its connection is closed.
REFUSAL_LINGER_SECONDS = 2.0
# Time for a client to send the rest of a body whose request has been answered already.
BODY_DISCARD_SECONDS = 10.0

# Limit of chunked-encoding overhead (chunk sizes, extensions and trailers): a constant, plus a
# number of bytes per byte of the body. A body in chunks of one byte is unusual but valid.
FRAMING_OVERHEAD_BYTES = 64 * 1024
FRAMING_OVERHEAD_PER_BODY_BYTE = 8

# The WebSocket library reads lines of up to 8,192 bytes and does not answer a handshake that has
# a longer one.
HANDSHAKE_LINE_MAX_BYTES = 8_000

# Requests on one connection that may wait for the response to an earlier one.
MAX_PIPELINED_REQUESTS = 32


class Stage(Enum):
    """The stage of a connection; see the module's docstring."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    OVER = auto()


IDLE, HEAD, BODY, OVER = Stage


class RequestRefusedError(Exception):
    """Ends parsing from a parser callback; the reason is in `GuardProtocol._refusal`."""


class GuardProtocol(WatchedProtocol, HttpProtocol, LaneProtocol):
    """The protocol of one client connection; limits what it receives before uvicorn handles it."""

    # The attributes of this class and of the mixins. Without them, those of uvicorn fit into the
    # compact form of an instance, which needs 1 KB less.
    __slots__ = (
        "_active", "_admitted", "_answered_at", "_body_bytes", "_body_deadline", "_call",
        "_call_target", "_collected", "_deadline", "_edge", "_head_key", "_heads", "_is_reserved",
        "_keeps_alive", "_lane", "_messages_begun", "_raw_bytes", "_raw_head", "_received_bytes",
        "_refusal", "_stage", "_was_paused", "_watchers", "_window_bytes",
    )  # fmt: skip

    def __init__(self, edge: EdgeContext, **uvicorn_arguments: Any) -> None:
        super().__init__(edge.lane, edge.heads, **uvicorn_arguments)
        self._edge = edge
        self._stage = IDLE
        self._refusal: ApiError | None = None
        # The request whose response is in progress.
        self._active: RequestResponseCycle | None = None
        # The connection is one of those that are reserved for workers.
        self._is_reserved = False
        # Number of messages that began in the data received last, and its size in bytes.
        self._messages_begun = 0
        self._received_bytes = 0
        # Bytes of the current head, or of the current body with its framing.
        self._raw_bytes = 0
        # Bytes of the current body without its framing: in all, and in the current time window.
        self._body_bytes = 0
        self._window_bytes = 0
        # Reading was paused during the current time window, so the minimum rate does not apply.
        self._was_paused = False
        # Event loop times: of the next check (0: none), and of the latest end of the body.
        self._deadline = 0.0
        self._body_deadline = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connections = self._edge.connections
        connections.enter()
        if connections.size > connections.limit and not connections.evict():
            transport.abort()
            return
        self._is_reserved = connections.size > connections.client_limit
        seconds = self._edge.pace.head
        if self._is_reserved:
            seconds = min(RESERVED_HEAD_SECONDS, seconds)
        self._set_deadline(seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.connections.leave()
        self._unset_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._stage is IDLE and not self._is_reserved and self.repeat_head(data):
            return
        while self._stage is not OVER:
            stage = self._stage
            self._messages_begun = 0
            self._received_bytes = len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self._switch_to_websocket(data[upgrade.args[0] :])
                    return
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError:
                self.use_application()
                self._refuse(self._refusal or ApiError("bad_request", "Malformed HTTP request."))
            else:
                self.use_application()
                if stage is self._stage is IDLE and self._messages_begun == 1 and self.is_in_lane:
                    self.learn_head(data)
                self._check_unfinished(stage)
                return

    # The parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._stage = HEAD
        self._messages_begun += 1
        self._raw_bytes = 0
        self._body_bytes = 0
        self._window_bytes = 0

    def on_headers_complete(self) -> None:
        edge = self._edge
        fault: ApiError | None = None
        if not self.has_same_head():
            fault = check_head(self.url, self.parser.get_http_version(), self.headers, edge.hosts)
        upgrades = self.parser.should_upgrade()
        if upgrades:
            fault = self._check_upgrade() or fault
        # The exact size is computed only where the received bytes make it possible.
        may_be_too_large = self._raw_bytes + self._received_bytes > HEAD_MAX_BYTES
        if may_be_too_large and head_size(self.url, self.headers) > HEAD_MAX_BYTES:
            fault = too_large_head()
        if fault is None:
            self._use_host_of_target()
        if fault is None and len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            sentence = f"Too many pipelined requests: at most {MAX_PIPELINED_REQUESTS} may wait."
            fault = ApiError("bad_request", sentence)
        is_full = edge.connections.size > edge.connections.client_limit
        if fault is None and self._is_reserved and is_full and not self._is_from_worker():
            fault = ApiError("too_many_connections", "Too many open connections. Retry shortly.")
        if fault is not None:
            self._refusal = fault
            raise RequestRefusedError
        if upgrades and not self._should_upgrade():
            # The request is served after a second parse; see `_without_upgrade`.
            return
        super().on_headers_complete()
        if not upgrades:
            # Fields that follow the body are trailers, which are ignored.
            self.headers = []
        self._stage = BODY
        self._raw_bytes = 0
        self._unset_deadline()

    def _use_host_of_target(self) -> None:
        """Replace a target that is a URL by its path, and the `Host` field by the URL's host."""
        parts = read_target(self.url)
        if parts is not None and parts.host is not None:
            self.url = parts.path
            kept = [field for field in self.headers if field[0] != b"host"]
            # In place: the scope of the request refers to this list.
            self.headers[:] = [(b"host", parts.host), *kept]

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._window_bytes += len(body)
        super().on_body(body)
        self._was_paused |= self.flow.read_paused

    def on_message_complete(self) -> None:
        if self._stage is BODY:
            super().on_message_complete()
        self._stage = IDLE
        self._unset_deadline()

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
            self._set_deadline(BODY_DISCARD_SECONDS)

    # Deadlines, limits and refusals

    def check_deadline(self, now: float) -> None:
        """Refuse or close the connection if it has missed its deadline; see `Watched`."""
        if now < self._deadline:
            return
        pace = self._edge.pace
        if self._stage is HEAD and not self.flow.read_paused:
            self._time_out(f"The request head was not complete within {pace.head:g} s.")
        elif self._stage is HEAD:
            self._set_deadline(pace.head)
        elif self._stage is not BODY or not self._is_answering():
            self.transport.abort()
        elif now > self._body_deadline and not self._is_authenticated_worker():
            self._time_out(f"The request body was not complete within {pace.whole:g} s.")
        elif self._was_paused or self._window_bytes >= MIN_BODY_BYTES_PER_SECOND * pace.body:
            self._was_paused = self.flow.read_paused
            self._set_deadline(pace.body)
        else:
            rate = f"{MIN_BODY_BYTES_PER_SECOND // 1024} KB/s for {pace.body:g} s"
            self._time_out(f"The request body arrived too slowly: less than {rate}.")

    def _check_unfinished(self, stage: Stage) -> None:
        """Apply the size limits and set a deadline after data that did not complete a message.

        `stage` is the stage before the data was parsed.
        """
        if self._messages_begun == (stage is IDLE):
            self._raw_bytes += self._received_bytes
        framing_limit = FRAMING_OVERHEAD_BYTES + FRAMING_OVERHEAD_PER_BODY_BYTE * self._body_bytes
        if self._stage is HEAD and self._raw_bytes > HEAD_MAX_BYTES:
            self._refuse(too_large_head())
        elif self._stage is BODY and self._raw_bytes > framing_limit:
            sentence = "Too much chunked-encoding overhead for the data sent. Use larger chunks."
            self._refuse(ApiError("bad_request", sentence))
        elif self._deadline or self._stage is IDLE:
            return
        elif self._stage is HEAD:
            self._set_deadline(self._edge.pace.head)
        else:
            self._body_deadline = self.loop.time() + self._edge.pace.whole
            self._set_deadline(self._edge.pace.body)

    def _set_deadline(self, seconds: float) -> None:
        self._window_bytes = 0
        self._deadline = self.loop.time() + seconds
        self._edge.connections.watch(self)

    def _unset_deadline(self) -> None:
        # A request that arrives in one piece on an open connection never has a deadline.
        if self._deadline:
            self._deadline = 0.0
            self._edge.connections.unwatch(self)

    def evict(self) -> bool:
        """Close the connection unless it serves a request; see `connections.Watched`."""
        is_served = self._stage is BODY or self._is_answering()
        if not is_served:
            self._unset_deadline()
            self.transport.abort()
        return not is_served

    def _is_from_worker(self) -> bool:
        """Return True if the head that was just read carries a valid worker token."""
        return self._edge.is_worker(path_of(self.url), self.headers)

    def _is_authenticated_worker(self) -> bool:
        """Return True if the gate has identified the caller of the current request as a worker.

        A worker's post may have to wait for memory, and its result is sent only once.
        """
        principal = routing_of(self.cycle.scope).principal
        return principal is not None and principal.kind is Kind.WORKER

    def _is_answering(self) -> bool:
        return self.is_in_lane or (self._active is not None and not self._active.response_complete)

    def _time_out(self, sentence: str) -> None:
        self._refuse(ApiError("request_timeout", sentence))

    def _refuse(self, error: ApiError) -> None:
        """Stop reading from this connection, and write the refusal after all earlier responses."""
        is_of_body = self._stage is BODY
        self._stage = OVER
        self._refusal = error
        self._unset_deadline()
        if is_of_body and self._active is self.cycle:
            # The request in progress is the one whose body is incomplete.
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
        if longest_line(self.url, self.headers) > HANDSHAKE_LINE_MAX_BYTES:
            return ApiError(
                "head_too_large",
                "A line of the WebSocket handshake is too long:"
                f" at most {HANDSHAKE_LINE_MAX_BYTES} bytes are allowed.",
            )
        return None

    def _switch_to_websocket(self, rest: bytes) -> None:
        """Pass the connection, and data after the handshake, to the WebSocket protocol."""
        self._edge.connections.leave()
        self._unset_deadline()
        self.handle_websocket_upgrade()
        if rest and not self.transport.is_closing():
            cast("asyncio.Protocol", self.transport.get_protocol()).data_received(rest)

    def _without_upgrade(self) -> bytes:
        """Start a new parser; return the head that was just parsed, without its `Upgrade` field.

        The caller parses the returned head again. A server may ignore `Upgrade` (Java's client asks
        for HTTP/2 in its first request), but the parser does not read a body that follows it. The
        new head has no `Upgrade` field, so no request takes this path twice.
        """
        head = without_upgrade(
            self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
        )
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._stage = IDLE
        return head

    def _write_refusal(self, error: ApiError) -> None:
        log.debug("edge.refused", code=error.code, reason=str(error))
        self._stage = OVER
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        body = self._edge.render_error(path_of(getattr(self, "url", b"")), error)
        fields = [
            (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"), *error.headers(),
        ]  # fmt: skip
        head = STATUS_LINE[error.row.status] + render_fields(fields) + b"\r\n"
        self.transport.write(head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_deadline(REFUSAL_LINGER_SECONDS)
