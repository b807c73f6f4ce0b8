"""A worker without an engine: it answers every request itself, so that the proxy alone is measured.

    .venv/bin/python benchmarks/pump.py URL TOKEN [--slots 12000] [--connections 1]

URL is that of the proxy's channel, such as ws://127.0.0.1:8000/v2/default/worker. Each connection
is one worker. The answers are those of `native/mock_upstream.c`: a body of 600 bytes, or a stream
of `max_tokens` events that are `seed` microseconds apart, of which the first one is sent at once.
With a `seed` of 0, 16 events are one chunk. As in an engine's step, events that become due within a
millisecond leave in one message. Each event contains `@` and the time (CLOCK_MONOTONIC in ns) of
its creation, from which the load generator computes its transit time.
"""

import argparse
import asyncio
import gc
import heapq
import json
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop
from websockets.asyncio.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The import follows the change of the path, to use this repository and not an installed package.
from proxy.wire import frames

BURST_EVENTS = 16
# Events that become due in one tick leave together. It is the step of libuv's timers, and much less
# than the step of an engine, in which all of its streams get a token at the same time.
TICK_SECONDS = 0.001
FRAMES_PER_MESSAGE = 4_000
# What a frame adds to its data in a message, at most.
FRAME_BYTES = 64
MODEL = json.dumps({"id": "mock", "object": "model", "created": 0, "owned_by": "vllm"}).encode()
WHOLE = json.dumps(
    {
        "id": "chatcmpl-mock0123456789",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "lorem ipsum " * 27},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 75, "completion_tokens": 64, "total_tokens": 139},
    }
).encode()
EVENT = (
    b'data: {"id":"chatcmpl-mock0123456789","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"mock","choices":[{"index":0,"delta":{"content":"tok @%d "},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
OUTPUT = b'{"text":"ok"}'


class Request(msgspec.Struct):
    """The fields of a request that select its answer."""

    max_tokens: int = 128
    stream: bool = False
    seed: int = 0


def event() -> bytes:
    return EVENT % time.monotonic_ns()


class Stream(msgspec.Struct, order=True):
    """A paced stream: when its next event is due (CLOCK_MONOTONIC in ns), and what is left."""

    due: int
    job: str
    attempt: int
    events_left: int
    gap: int


class Pump:
    """One connection to the proxy."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._out: list[frames.Frame] = []
        self._has_output = asyncio.Event()
        self._streams: list[Stream] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[tuple[str, int]] = set()
        self._jobs: dict[str, tuple[frames.Job, list[bytes]]] = {}
        self._request = msgspec.json.Decoder(Request)

    async def run(self, url: str, token: str, name: str) -> None:
        """Connect, and answer requests until the connection ends."""
        credentials = {"Authorization": f"Bearer {token}"}
        async with connect(
            url,
            additional_headers=credentials,
            compression=None,
            max_size=frames.SOCKET_BYTES,
            ping_interval=None,
        ) as socket:
            self._out.append(
                frames.Hello(
                    frames.PROTOCOL,
                    name,
                    "pump",
                    [frames.Model("mock", MODEL)],
                    instance=secrets.token_hex(8),
                    features=list(frames.FEATURES),
                )
            )
            self._out.append(frames.Credit(self._slots, 32))
            self._has_output.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(socket))
                group.create_task(self._write(socket))
                group.create_task(self._beat())

    async def _read(self, socket: ClientConnection) -> None:
        while True:
            message = await socket.recv(decode=False)
            for frame in frames.decode_to_worker(message):
                match frame:
                    case frames.Job():
                        self._jobs[frame.job] = (frame, [])
                    case frames.Body():
                        self._take_body(frame)
                    case frames.Stop():
                        self._stop(frame)
                    case _:
                        # No run has more bytes than the window, and none continues on another
                        # connection: nothing follows from `Resume`, `Pause` and `Acknowledge`.
                        pass
            if self._out:
                self._has_output.set()

    def _take_body(self, frame: frames.Body) -> None:
        job, parts = self._jobs[frame.job]
        parts.append(frame.data)
        if not frame.more:
            del self._jobs[frame.job]
            self._answer(job, b"".join(parts))

    def _answer(self, job: frames.Job, body: bytes) -> None:
        run = (job.job, job.attempt)
        if job.input:
            self._out.append(frames.Output(*run, OUTPUT, whole=True))
            self._out.append(frames.End(*run, "completed"))
            return
        request = self._request.decode(body)
        if not request.stream:
            self._out.append(frames.Head(*run, 200, "application/json"))
            self._out.append(frames.Chunk(*run, WHOLE))
            self._out.append(frames.End(*run, "completed"))
            return
        if request.max_tokens * len(event()) > frames.STREAM_WINDOW:
            sys.exit(f"{request.max_tokens} events are more than the window of a stream.")
        self._out.append(frames.Head(*run, 200, "text/event-stream"))
        if request.seed and request.max_tokens > 1:
            self._out.append(frames.Chunk(*run, event()))
            gap = request.seed * 1000
            due = time.monotonic_ns() + gap
            self._running.add(run)
            stream = Stream(due, *run, request.max_tokens - 1, gap)
            heapq.heappush(self._streams, stream)
            if self._streams[0] is stream:
                self._schedule()
        else:
            for events in _bursts(request.max_tokens):
                data = b"".join([event() for _ in range(events)])
                self._out.append(frames.Chunk(*run, data))
            self._end(run)

    def _end(self, run: tuple[str, int]) -> None:
        self._out.append(frames.Chunk(*run, DONE))
        self._out.append(frames.End(*run, "completed"))

    def _stop(self, frame: frames.Stop) -> None:
        run = (frame.job, frame.attempt)
        self._jobs.pop(frame.job, None)
        if run in self._running:
            self._running.discard(run)
            self._out.append(frames.End(*run, "completed"))
        else:
            self._out.append(frames.End(*run, "released", frames.UNKNOWN_RUN))

    def _schedule(self) -> None:
        """Set the timer for the stream that is due first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._streams:
            wait = (self._streams[0].due - time.monotonic_ns()) / 1e9
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(wait, TICK_SECONDS), self._tick)

    def _tick(self) -> None:
        """Create the events of paced streams that are due."""
        now = time.monotonic_ns()
        while self._streams and self._streams[0].due <= now:
            self._step(self._streams[0])
        self._has_output.set()
        self._schedule()

    def _step(self, stream: Stream) -> None:
        """Create the next event of the stream that is due first."""
        run = (stream.job, stream.attempt)
        if run not in self._running:
            heapq.heappop(self._streams)
            return
        self._out.append(frames.Chunk(*run, event()))
        stream.events_left -= 1
        if stream.events_left:
            stream.due += stream.gap
            heapq.heapreplace(self._streams, stream)
        else:
            heapq.heappop(self._streams)
            self._running.discard(run)
            self._end(run)

    async def _write(self, socket: ClientConnection) -> None:
        while True:
            if not self._out:
                self._has_output.clear()
                await self._has_output.wait()
            count = 0
            size = 0
            while count < min(len(self._out), FRAMES_PER_MESSAGE):
                size += FRAME_BYTES + len(getattr(self._out[count], "data", b""))
                if size > frames.MESSAGE_BYTES:
                    break
                count += 1
            batch = self._out[:count]
            del self._out[:count]
            await socket.send(frames.encode(batch))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(frames.HEARTBEAT_SECONDS)
            self._out.append(frames.Heartbeat())
            self._has_output.set()


def _bursts(events: int) -> Iterator[int]:
    """Yield the numbers of events in the chunks of an unpaced stream."""
    while events:
        burst = min(BURST_EVENTS, events)
        events -= burst
        yield burst


async def run(url: str, token: str, slots: int, connections: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(Pump(slots).run(url, token, f"pump-{number}"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("token")
    parser.add_argument("--slots", type=int, default=12_000)
    parser.add_argument("--connections", type=int, default=1)
    options = parser.parse_args()
    # A collection would delay events, and the objects of this program form no cycles.
    gc.disable()
    uvloop.run(run(options.url, options.token, options.slots, options.connections))


if __name__ == "__main__":
    main()
