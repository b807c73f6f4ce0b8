"""The connection's side of the fast lane: a subclass of uvicorn's HTTP protocol."""

import asyncio
import re
from collections import deque
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.api.openai.fast_call import FastCall
from proxy.api.openai.fast_lane import BODY_MAX_BYTES, Admitted, FastLane

POST = b"POST"
QUEUE_API = b"/v2/"
OPENAI_API = b"/openai/"
CONTENT_LENGTH = b"content-length"
LENGTH_MAX_DIGITS = 5
HTTP_VERSION = "1.1"
HEAD_END = b"\r\n\r\n"
# Nothing can be added to it.
NO_REQUESTS: Any = ()

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,5})[ \t]*(?:\r\n|\Z)")


class RawHead(NamedTuple):
    """The bytes of an admitted head before and after the value of its `Content-Length`, with the
    blank line, and the scope of its request.
    """

    start: bytes
    end: bytes
    admitted: Admitted
    scope: Any


class LaneProtocol(HttpToolsProtocol):
    """The connection's side of the fast lane (`api.openai.fast_lane`). Implements `LaneConnection`.

    A request is collected as long as it may use the lane. If it may not, the application gets it as
    if it had just been received. A call that leaves the lane gets a response cycle of uvicorn and
    continues in the application.

    Most requests of a connection have the same head. Equal bytes have an equal meaning, so such a
    request is not parsed again if it arrives in one piece.
    """

    def __init__(self, lane: FastLane | None, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        # An empty one needs 1 KB; `on_headers_complete` replaces it for a pipelined request.
        self.pipeline = NO_REQUESTS
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
        # The last head that has arrived in one piece with its body.
        self._raw_head: RawHead | None = None
        # The call in the lane, its scope, and False if the connection is to be closed after it.
        self._call: FastCall | None = None
        self._call_scope: Any = None
        self._keeps_alive = True

    @property
    def is_in_lane(self) -> bool:
        """True while a call of this connection is in the lane."""
        return self._call is not None

    # Requests that are not parsed

    def repeat_head(self, data: bytes) -> bool:
        """Start a call if received data is one whole request with the last head; return False if
        it has to be parsed. The data begins between two requests.
        """
        raw = self._raw_head
        if (
            raw is None
            or self._lane is None
            or self._call is not None
            or self.pipeline
            or not data.startswith(raw.start)
            or self._is_in_application()
        ):
            return False
        place = len(raw.start)
        end = data.find(b"\r", place, place + LENGTH_MAX_DIGITS + 1)
        length = data[place:end]
        body = end + len(raw.end)
        if (
            end < 0
            or not _is_small(length)
            or not data.startswith(raw.end, end)
            or len(data) - body != int(length)
        ):
            return False
        call = self._lane.begin(self, raw.admitted, data[body:])
        if call is None:
            return False
        self._call = call
        self._call_scope = raw.scope
        self._keeps_alive = True
        return True

    def learn_head(self, data: bytes) -> None:
        """Keep the head of the call that has just begun. `data` was received between two requests,
        and has exactly one request, up to blank lines before and after it.
        """
        head, _, body = data.partition(HEAD_END)
        length = _LENGTH.search(head)
        if self._admitted is not None and length is not None and len(body) == int(length[1]):
            start, end = length.span(1)
            self._raw_head = RawHead(
                head[:start], head[end:] + HEAD_END, self._admitted, self._call_scope
            )

    # The parser's callbacks

    def on_headers_complete(self) -> None:
        if self._call is not None:
            # A pipelined request: the application puts both into their order.
            self._call.leave_lane()
        if not self.pipeline and self._is_in_application():
            self.pipeline = deque()
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
            # A copy: later requests with the same head have the same scope.
            scope=self._call_scope | {"state": self.app_state.copy()},
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
