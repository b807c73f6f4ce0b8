"""The connection's side of the fast lane (`api.openai.fast_lane`): uvicorn's HTTP protocol, which
gives plain calls to the lane instead of to the application.

A request is collected as long as it may use the lane. If it may not, the application gets it as if
it had just been received. A call that leaves the lane gets a response cycle of uvicorn and
continues in the application.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.api.openai.fast_lane import FastCall, FastLane

POST = b"POST"
HTTP_VERSION = "1.1"


class LaneProtocol(HttpToolsProtocol):
    """Implements `LaneConnection`."""

    def __init__(self, lane: FastLane | None, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self._lane = lane
        # The parts of the body of a request that may use the lane, and the header fields.
        self._collected: list[bytes] | None = None
        self._fields: list[tuple[bytes, bytes]] = []
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
        if self._lane is not None and self._may_use_lane(self._lane):
            self._collected = []
            self._fields = self.headers
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._collected is None:
            super().on_body(body)
        else:
            self._collected.append(body)

    def on_message_complete(self) -> None:
        if self._collected is None or self._lane is None:
            super().on_message_complete()
            return
        call = self._lane.begin(self, self.url, self._fields, b"".join(self._collected))
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
        self._call = None
        if call is not None:
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
    def can_write(self) -> bool:
        return not self.flow.write_paused

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

    def _may_use_lane(self, lane: FastLane) -> bool:
        parser = self.parser
        return (
            parser.get_method() == POST
            and parser.get_http_version() == HTTP_VERSION
            and not parser.should_upgrade()
            and not self._is_in_application()
            and not self.pipeline
            and parser.should_keep_alive()
            and lane.takes(self.url, self.headers)
        )

    def _is_in_application(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete
