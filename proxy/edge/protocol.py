"""The subclasses of uvicorn's protocols: one for HTTP, one for the WebSockets of workers.

The protocol of a client's connection is `GuardProtocol`, which combines those for HTTP.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from proxy.api.http import ABORT_EXTENSION
from proxy.api.openai.fast_call import FastCall
from proxy.api.openai.fast_lane import BODY_MAX_BYTES, Admitted, FastLane
from proxy.channel.runpod.tracking import CONNECTION, Closing, OnClosed
from proxy.edge.head import OLD_HTTP_VERSION
from proxy.edge.http10 import App, without_chunks
from proxy.wire.sockets import enable_keepalive, limit_receive_buffer, limit_unsent_bytes

# Above this a write waits for the client, and what the worker sends meanwhile waits in the mailbox.
WRITE_HIGH_WATERMARK_BYTES = 32 * 1024
POST = b"POST"
QUEUE_API = b"/v2/"
OPENAI_API = b"/openai/"
CONTENT_LENGTH = b"content-length"
LENGTH_MAX_DIGITS = 5
HTTP_VERSION = "1.1"


class WorkerProtocol(WebSocketsSansIOProtocol):
    """The WebSocket protocol; only workers use it (see `wire.sockets`)."""

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - asyncio's own
        super().connection_made(transport)
        wire = transport.get_extra_info("socket")
        limit_unsent_bytes(wire)
        limit_receive_buffer(wire)

    def data_received(self, data: bytes) -> None:
        """Process received data; close the connection if the handshake is invalid.

        The first data is a complete handshake, and nothing may follow before its response
        (RFC 6455). The library neither answers nor closes a handshake that it cannot parse, and
        fails on data that arrives before the response.
        """
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.close()
            return
        super().data_received(data)
        if not self.handshake_initiated:
            self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        """Send an event of the application.

        A refused handshake is marked as complete, since uvicorn logs an error otherwise.
        """
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """Answer a ping, unless the peer has stopped reading: its pongs would fill the memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()


class WatchedProtocol(HttpToolsProtocol):
    """Mixin that reports the end of a connection; the scope of each request refers to it."""

    # More than one callback if a reverse proxy carries several workers over one connection.
    _watchers: tuple[OnClosed, ...] = ()
    # The event loop's time of the last complete response.
    _answered_at = 0.0

    def watch(self, on_closed: OnClosed) -> None:
        """Call `on_closed` when the connection ends, and keep it open while it is idle."""
        self._watchers += (on_closed,)
        enable_keepalive(self.transport.get_extra_info("socket"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope.setdefault("extensions", {})[CONNECTION] = self  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        self._answered_at = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if not self._watchers:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        watchers = self._watchers
        self._watchers = ()
        if watchers:
            is_busy = not self.cycle.response_complete
            is_ours = not self.cycle.keep_alive
            idle = None if is_busy else self.loop.time() - self._answered_at
            closing = Closing(is_ours, exc is not None, idle)
            for on_closed in watchers:
                on_closed(closing)
        super().connection_lost(exc)


class HttpProtocol(HttpToolsProtocol):
    """Mixin that bounds the write buffer, lets each request abort its connection, and answers
    HTTP/1.0 in its own format.
    """

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - asyncio's own
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATERMARK_BYTES)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: self.transport.abort}  # type: ignore[dict-item]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: App) -> None:
        if cycle.scope["http_version"] == OLD_HTTP_VERSION:
            app = without_chunks(cycle, app)
        super()._start_asgi_task(cycle, app)


class LaneProtocol(HttpToolsProtocol):
    """The connection's side of the fast lane (`api.openai.fast_lane`). Implements `LaneConnection`.

    A request is collected as long as it may use the lane. If it may not, the application gets it as
    if it had just been received. A call that leaves the lane gets a response cycle of uvicorn and
    continues in the application.
    """

    def __init__(self, lane: FastLane | None, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self._lane = lane
        # The parts of the body of a request that may use the lane.
        self._collected: list[bytes] | None = None
        # The last head that was checked and admitted: most requests of a connection have the same.
        self._target = b""
        self._before_length: list[tuple[bytes, bytes]] = []
        self._after_length: list[tuple[bytes, bytes]] = []
        self._admitted: Admitted | None = None
        # The head that was just read has the same meaning.
        self._is_same_head = False
        # The call in the lane, its scope, and False if the connection is to be closed after it.
        self._call: FastCall | None = None
        self._call_scope: Any = None
        self._keeps_alive = True

    @property
    def is_in_lane(self) -> bool:
        """True while a call of this connection is in the lane."""
        return self._call is not None

    # The parser's callbacks

    def on_headers_complete(self) -> None:
        if self._call is not None:
            # A pipelined request: the application puts both into their order.
            self._call.leave_lane()
        if self._may_use_lane():
            self._collected = []
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._collected is None:
            super().on_body(body)
        else:
            self._collected.append(body)

    def on_message_complete(self) -> None:
        collected = self._collected
        if collected is None or self._lane is None or self._admitted is None:
            super().on_message_complete()
            return
        body = collected[0] if len(collected) == 1 else b"".join(collected)
        call = self._lane.begin(self, self._admitted, body)
        if call is None:
            self.use_application()
            super().on_message_complete()
        else:
            self._collected = None
            self._call = call
            # The rest of the scope that the application gets if the call leaves the lane.
            path = self.url.decode("ascii")
            self.scope["method"] = "POST"
            self.scope["path"] = path
            self.scope["raw_path"] = self.url
            self.scope["query_string"] = b""
            self._call_scope = self.scope
            self._keeps_alive = True

    def use_application(self) -> None:
        """Give a request that is being collected to the application."""
        if self._collected is not None:
            body = b"".join(self._collected)
            self._collected = None
            super().on_headers_complete()
            if body:
                super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        call = self._call
        if call is not None and call.mailbox.is_whole:
            # The end of the run decides how the job ends; the application waits for it.
            call.leave_lane()
        elif call is not None:
            self._call = None
            call.lose()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._call is not None:
            self._call.pause(self.loop.time())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._call is not None:
            self._call.pause(None)

    def shutdown(self) -> None:
        if self._call is not None:
            self._keeps_alive = False
        else:
            super().shutdown()

    # `LaneConnection`

    @property
    def is_paused(self) -> bool:
        return self.flow.write_paused

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        return self.server_state.default_headers

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def abort(self) -> None:
        self.transport.abort()

    def end_call(self) -> None:
        self._call = None
        if not self._keeps_alive:
            self.transport.close()
        self.on_response_complete()

    def leave_lane(self, call: FastCall) -> None:
        self._call = None
        self.cycle = RequestResponseCycle(
            scope=self._call_scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self._keeps_alive,
            on_response=self.on_response_complete,
        )
        self.cycle.more_body = False
        if call.has_begun:
            self.cycle.response_started = True
            self.cycle.chunked_encoding = True
        self._start_asgi_task(self.cycle, call.resume)

    def has_same_head(self) -> bool:
        """Return True if the head that was just read differs from the last admitted one at most in
        its method and its `Content-Length`, which is valid and small.
        """
        self._is_same_head = self._compare_heads()
        return self._is_same_head

    def _compare_heads(self) -> bool:
        if (
            self._admitted is None
            or self.url != self._target
            or self.parser.get_http_version() != HTTP_VERSION
        ):
            return False
        fields = self.headers
        place = len(self._before_length)
        if (
            len(fields) != place + 1 + len(self._after_length)
            or fields[:place] != self._before_length
            or fields[place + 1 :] != self._after_length
        ):
            return False
        name, value = fields[place]
        return name == CONTENT_LENGTH and _is_small(value)

    def _may_use_lane(self) -> bool:
        parser = self.parser
        if (
            self._lane is None
            or (self.url.startswith(QUEUE_API) and OPENAI_API not in self.url)
            or parser.get_method() != POST
            or parser.get_http_version() != HTTP_VERSION
            or parser.should_upgrade()
            or not parser.should_keep_alive()
            or self._is_in_application()
            or self.pipeline
        ):
            return False
        return self._is_same_head or self._admit(self._lane)

    def _admit(self, lane: FastLane) -> bool:
        """Admit the head that was just read, which has been checked."""
        fields = self.headers
        self._admitted = lane.admit(self.url, fields)
        if self._admitted is None:
            return False
        place = next(at for at, field in enumerate(fields) if field[0] == CONTENT_LENGTH)
        self._target = self.url
        self._before_length = fields[:place]
        self._after_length = fields[place + 1 :]
        return _is_small(fields[place][1])

    def _is_in_application(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete


def _is_small(length: bytes) -> bool:
    """Return True if a `Content-Length` is that of a body which the lane takes."""
    return (
        length.isdigit() and len(length) <= LENGTH_MAX_DIGITS and 0 < int(length) <= BODY_MAX_BYTES
    )
