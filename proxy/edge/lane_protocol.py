"""The connection's side of the fast lane: a subclass of uvicorn's HTTP protocol, and the heads of
requests that were checked and admitted to the lane.
"""

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.api.http import ABORT_EXTENSION
from proxy.api.openai.fast_call import FastCall
from proxy.api.openai.fast_lane import BODY_MAX_BYTES, Admitted, FastLane

POST = b"POST"
QUEUE_API = b"/v2/"
OPENAI_API = b"/openai/"
HTTP_VERSION = "1.1"
# Nothing can be added to it.
NO_REQUESTS: Any = ()
NO_SCOPE: Any = None
CONTENT_LENGTH = b"content-length"
LENGTH_MAX_DIGITS = 5
HEAD_END = b"\r\n\r\n"
# A client has one or two heads. Some clients send a new one with each request, which must not fill
# the memory.
HEADS_MAX = 1_000

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,5})[ \t]*(?:\r\n|\Z)")

HeadKey: TypeAlias = tuple[bytes | tuple[bytes, bytes], ...]
"""The target and the fields of a head, in their order, without `Content-Length`."""


class RawHead(NamedTuple):
    """The bytes of an admitted head before and after the value of its `Content-Length`, with the
    blank line.
    """

    start: bytes
    end: bytes
    admitted: Admitted

    def body_of(self, data: bytes) -> bytes | None:
        """Return the body if `data` is exactly one request with this head, else None."""
        if not data.startswith(self.start):
            return None
        place = len(self.start)
        end = data.find(b"\r", place, place + LENGTH_MAX_DIGITS + 1)
        length = data[place:end]
        if end < 0 or not is_small(length) or not data.startswith(self.end, end):
            return None
        body = end + len(self.end)
        return data[body:] if len(data) - body == int(length) else None


class AdmittedHeads:
    """The admitted heads of all connections, by their parsed fields and by their bytes.

    The result of the checks depends only on the head and on the configuration, so an equal head has
    an equal result. The value of `Content-Length` is not part of it.
    """

    def __init__(self) -> None:
        self._parsed: dict[HeadKey, Admitted] = {}
        self._raw: dict[tuple[bytes, bytes], RawHead] = {}

    def find(self, key: HeadKey) -> Admitted | None:
        """Return the meaning of a head, if it was admitted before."""
        return self._parsed.get(key)

    def add(self, key: HeadKey, admitted: Admitted) -> None:
        """Keep the meaning of a head."""
        if len(self._parsed) >= HEADS_MAX:
            self._parsed.clear()
        self._parsed[key] = admitted

    def raw(self, data: bytes, admitted: Admitted) -> RawHead | None:
        """Return the bytes of an admitted head, from the data of exactly one request, up to blank
        lines before and after it; None if they cannot be found.
        """
        head, _, body = data.partition(HEAD_END)
        length = _LENGTH.search(head)
        if length is None or len(body) != int(length[1]):
            return None
        start, end = length.span(1)
        key = (head[:start], head[end:] + HEAD_END)
        found = self._raw.get(key)
        if found is None or found.admitted != admitted:
            if len(self._raw) >= HEADS_MAX:
                self._raw.clear()
            found = self._raw[key] = RawHead(*key, admitted)
        return found


class LaneProtocol(HttpToolsProtocol):
    """The connection's side of the fast lane (`api.openai.fast_lane`). Implements `LaneConnection`.

    A request is collected as long as it may use the lane. If it may not, the application gets it as
    if it had just been received. A call that leaves the lane gets a response cycle of uvicorn and
    continues in the application.

    Most requests of a connection have the same head. Equal bytes have an equal meaning, so such a
    request is not parsed again if it arrives in one piece. If it arrives in several, its parsed
    head is not checked again.
    """

    def __init__(
        self, lane: FastLane | None, heads: AdmittedHeads, **uvicorn_arguments: Any
    ) -> None:
        super().__init__(**uvicorn_arguments)
        # An empty one needs 1 KB; `on_headers_complete` replaces it for a pipelined request.
        self.pipeline = NO_REQUESTS
        self._lane = lane
        self._heads = heads
        # The parts of the body of a request that may use the lane.
        self._collected: list[bytes] | None = None
        # The head that was just read; its meaning, if it was admitted.
        self._head_key: HeadKey | None = None
        self._admitted: Admitted | None = None
        # The last head that has arrived in one piece with its body.
        self._raw_head: RawHead | None = None
        # The call in the lane, the target of its request, and False if the connection is to be
        # closed after it.
        self._call: FastCall | None = None
        self._call_target = b""
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
            or self._is_in_application()
            or (body := raw.body_of(data)) is None
        ):
            return False
        return self._begin(self._lane, raw.admitted, body)

    def learn_head(self, data: bytes) -> None:
        """Keep the head of the call that has just begun. `data` was received between two requests,
        and has exactly one request, up to blank lines before and after it.
        """
        if self._admitted is not None:
            self._raw_head = self._heads.raw(data, self._admitted)

    def _begin(self, lane: FastLane, admitted: Admitted, body: bytes) -> bool:
        """Start a call; return False if the application has to handle it."""
        self._call = lane.begin(self, admitted, body)
        self._call_target = admitted.target
        self._keeps_alive = True
        return self._call is not None

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
        self._head_key = None

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
        if self._begin(self._lane, self._admitted, body):
            self._collected = None
            # What only the application needs is not kept.
            self.scope = NO_SCOPE
            self.headers = []
        else:
            self.use_application()
            super().on_message_complete()

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
        if call is not None and call.is_whole:
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
            scope=self._scope_of_call(),
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
        """Return True if the head that was just read was admitted before. Its method and its
        `Content-Length`, which is valid and small, may be others.
        """
        self._admitted = None
        self._head_key = None
        if self._lane is not None and self.parser.get_http_version() == HTTP_VERSION:
            self._head_key = head_key(self.url, self.headers)
        if self._head_key is not None:
            self._admitted = self._heads.find(self._head_key)
        return self._admitted is not None

    def _scope_of_call(self) -> Any:
        """Return the scope with which the application continues the call.

        It has no header fields: the call has read them.
        """
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": HTTP_VERSION,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "method": "POST",
            "path": self._call_target.decode("ascii"),
            "raw_path": self._call_target,
            "query_string": b"",
            "headers": [],
            "state": self.app_state.copy(),
            "extensions": {ABORT_EXTENSION: self.transport.abort},
        }

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
        if self._admitted is None and self._head_key is not None:
            self._admitted = self._lane.admit(self.url, self.headers)
            if self._admitted is not None:
                self._heads.add(self._head_key, self._admitted)
        return self._admitted is not None

    def _is_in_application(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete


def head_key(target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> HeadKey | None:
    """Return the key of a head; None without a `Content-Length` of a body that the lane takes."""
    for place, (name, value) in enumerate(fields):
        if name == CONTENT_LENGTH:
            return (target, *fields[:place], *fields[place + 1 :]) if is_small(value) else None
    return None


def is_small(length: bytes) -> bool:
    """Return True if a `Content-Length` is that of a body which the lane takes."""
    return (
        length.isdigit() and len(length) <= LENGTH_MAX_DIGITS and 0 < int(length) <= BODY_MAX_BYTES
    )
