"""Make the request ids that engines receive unique among running calls.

An engine derives the id of its answer from `X-Request-Id`. Logs and traces name it, and older
releases of vLLM abort every request that has it. So no two running calls may have the same one.
"""

import asyncio
from collections.abc import Callable

from proxy.wire.fields import REQUEST_ID, Fields

# The time in which a worker has ended a run that it was asked to stop.
STOPPING_SECONDS = 15.0
SUFFIX_CHARACTERS = 8
# As in `wire.fields`.
ID_MAX_CHARACTERS = 128


class RequestIds:
    """The request ids of the running calls. `new_id` returns random characters.

    `stopping_seconds`: the time in which a worker ends a run that it was asked to stop.
    """

    def __init__(
        self, new_id: Callable[[], str], stopping_seconds: float = STOPPING_SECONDS
    ) -> None:
        self._new_id = new_id
        self._stopping_seconds = stopping_seconds
        self._running: set[bytes] = set()

    def enter(self, fields: Fields) -> Fields:
        """Return the header fields of a new call, with a suffix to a request id that another
        running call has.
        """
        return tuple(
            (name, self._unique(value) if name == REQUEST_ID else value) for name, value in fields
        )

    def leave(self, fields: Fields, has_ended: Callable[[], bool], *, is_over: bool) -> None:
        """Note that the client of a call with these fields has left. `is_over`: its run has ended.
        `has_ended` returns True as soon as its job has; the run may still be stopping.
        """
        for name, value in fields:
            if name == REQUEST_ID and is_over:
                self._running.discard(value)
            elif name == REQUEST_ID:
                self._free_later(value, has_ended)

    def _free_later(self, request_id: bytes, has_ended: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._stopping_seconds, self._free, request_id, has_ended)

    def _free(self, request_id: bytes, has_ended: Callable[[], bool]) -> None:
        if has_ended():
            self._running.discard(request_id)
        else:
            # A retry can have claimed the call.
            self._free_later(request_id, has_ended)

    def _unique(self, request_id: bytes) -> bytes:
        while request_id in self._running:
            suffix = b"-" + self._new_id()[:SUFFIX_CHARACTERS].encode()
            request_id = request_id[: ID_MAX_CHARACTERS - len(suffix)] + suffix
        self._running.add(request_id)
        return request_id
