"""A worker with the native protocol that does nothing by itself: the test sends its frames."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from proxy.wire import frames
from sim.machines import ADDRESS, TOKEN

URL = f"ws://{ADDRESS[0]}:{ADDRESS[1]}/v2/default/worker"
LOOK_SECONDS = 0.001
TIMEOUT_SECONDS = 30.0
GOING_AWAY = 1001

F = TypeVar("F", bound=frames.JobFrame)

Answer: TypeAlias = Callable[[frames.Job], list[frames.Frame]]
"""Returns the frames that a worker sends for a job."""


def nothing(_: frames.Job) -> list[frames.Frame]:
    """Leave the job to the test."""
    return []


class PuppetWorker(asyncio.Protocol):
    """One connection of a worker. `slots`: the credit that it has announced last.

    `answer` is called for each job that is offered. `received`: the frames of the proxy. `engine`
    and `runtime`: the oracle checks those of other workers.
    """

    engine = None
    runtime = None

    def __init__(self, name: str, answer: Answer = nothing) -> None:
        self.name = name
        self.slots = 0
        self.received: list[frames.ToWorker] = []
        self._answer = answer
        self._is_open = False
        self._socket = ClientProtocol(parse_uri(URL))
        self._transport: Any = None

    async def connect(self) -> None:
        """Open the WebSocket."""
        await asyncio.get_running_loop().create_connection(lambda: self, *ADDRESS)
        await eventually(lambda: self._is_open)

    def hello(self, *holds: frames.Hold) -> frames.Hello:
        """Return the first frame of a worker that sends lost output again."""
        features = list(frames.FEATURES)
        return frames.Hello(
            frames.PROTOCOL, self.name, "puppet 1", [], list(holds), "process", features
        )

    def say(self, *said: frames.Frame) -> None:
        """Send frames in one message."""
        for frame in said:
            if isinstance(frame, frames.Credit):
                self.slots = frame.slots
        self._socket.send_binary(frames.encode(list(said)))
        self._flush()

    def leave(self) -> None:
        """Close the connection as a worker does that shuts down."""
        self._socket.send_close(GOING_AWAY)
        self._flush()

    def found(self, kind: type[F], job: str) -> list[F]:
        """Return the received frames of a kind about a job."""
        return [frame for frame in self.received if isinstance(frame, kind) and frame.job == job]

    async def until(self, kind: type[F], job: str, attempt: int = 1) -> None:
        """Wait for a frame about a run."""
        await eventually(lambda: any(frame.attempt == attempt for frame in self.found(kind, job)))

    # `asyncio.Protocol`

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        request = self._socket.connect()
        request.headers["Authorization"] = f"Bearer {TOKEN}"
        self._socket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._socket.receive_data(data)
        for event in self._socket.events_received():
            if not isinstance(event, Frame):
                self._is_open = True
            elif event.opcode is Opcode.BINARY:
                for frame in frames.decode_to_worker(bytes(event.data)):
                    self._receive(frame)
        self._flush()

    def eof_received(self) -> None:
        self._socket.receive_eof()

    def _receive(self, frame: frames.ToWorker) -> None:
        self.received.append(frame)
        if isinstance(frame, frames.Job) and (answer := self._answer(frame)):
            self.say(*answer)

    def _flush(self) -> None:
        for data in self._socket.data_to_send():
            if data:
                self._transport.write(data)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true. Raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110 - a condition has no event
            await asyncio.sleep(LOOK_SECONDS)
