"""The worker protocol, version 1: every frame that crosses the WebSocket between a worker and the proxy.

A worker dials `GET /v2/{endpoint}/worker` with `Authorization: Bearer <worker token>` and sends `Hello` first. From
then on each WebSocket message is binary: one msgpack array of frames, at most `MESSAGE_BYTES` of payload. A frame is a
msgpack array that begins with its tag; new fields are only ever added at the end, with a default, so that either side
may be the older one.

Frames that carry `(job, attempt)` belong to that job's lane and keep their order in it. The attempt is the fence: a
receiver that holds another attempt of the job ignores the frame.
"""

from typing import Literal, TypeAlias

import msgspec

PROTOCOL = 1
MESSAGE_BYTES = (
    256 * 1024
)  # one message holds this much payload, so a slot's big body never delays another job's token
PART_BYTES = (
    64 * 1024
)  # bodies and chunks longer than this travel in parts, round robin between jobs
MOST_FRAMES = (
    8 * 1024
)  # in one message: with what each costs in `wire.outbox`, `MESSAGE_BYTES` are half as many
SOCKET_BYTES = (
    512 * 1024
)  # the most either side accepts in one message: MESSAGE_BYTES, one last part, and framing
STREAM_WINDOW = (
    256 * 1024
)  # a worker sends no more of one stream until `Resume`: a `Pause` may come too late for a fast one
HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 15.0  # three heartbeats: a worker silent for this long has lost its jobs

Ending = Literal["completed", "failed", "lost", "released"]
"""How a run ended. `completed` and `failed`: the engine's answer is whole (a failed one carries an error of the engine,
which the client has been or will be given). `lost`: there is no answer and the run counts as a failure (engine dead,
hung, or its output cut short). `released`: handed back untouched, by a worker that drains; does not count."""


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message element."""


class JobFrame(Frame, frozen=True, gc=False):
    """A frame that belongs to one attempt of one job."""

    job: str
    attempt: int


# Proxy to worker


class Job(JobFrame, frozen=True, tag=1, gc=False):
    """Run this request. Its body follows in `Body` frames; the job starts when the last of them is here."""

    method: str
    path: str
    content_type: str
    size: int  # bytes of the whole body
    light: bool = False  # takes no slot
    input: bool = False  # the body is a job's `input`, to be answered with `Output` frames; method and path are empty


class Body(JobFrame, frozen=True, tag=2, gc=False):
    """A part of a job's request body."""

    data: bytes
    more: bool = False  # another part follows


class Stop(JobFrame, frozen=True, tag=3, gc=False):
    """End this run now; its result is not wanted. Answered by `End` once the engine has let go of it.

    It may overtake the job that it stops, whose frames the proxy then does not send: a worker that does not know the
    run answers with `End` too, `released`.
    """


class Pause(JobFrame, frozen=True, tag=4, gc=False):
    """Send no more chunks of this job until `Resume`."""


class Resume(JobFrame, frozen=True, tag=5, gc=False):
    """Go on: a paused job is taken up again, and `STREAM_WINDOW` more bytes of it may be sent."""


# Worker to proxy


class Hold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run that a worker still has when it dials in again, and how many frames of it it has sent (see `Hello`)."""

    job: str
    attempt: int
    sent: int


class Model(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A model that a worker serves: its name, and the engine's own model card (a JSON object) as bytes."""

    id: str
    card: bytes
    base: bool = True  # False for an adapter that rides on a base model


class Hello(Frame, frozen=True, tag=10, gc=False):
    """Who is calling. First frame of a connection, and sent again when `models` changes (so: once the engine is up).

    `holds` lets a connection be replaced without losing the runs: the proxy keeps a run whose `sent` equals what it has
    received, and stops every other one. A run that the proxy had handed out and that is not listed never arrived.
    """

    protocol: int
    worker: str
    engine: str  # name and version, for people
    models: list[Model] = []
    holds: list[Hold] = []


class Credit(Frame, frozen=True, tag=11, gc=False):
    """How many jobs this worker will hold at once, from now on. Zero of both: it is loading, or it drains."""

    slots: int
    light: int


class Heartbeat(Frame, frozen=True, tag=12, gc=False):
    """Still here; renews the lease of everything this worker holds. Every `HEARTBEAT_SECONDS`."""


class Head(JobFrame, frozen=True, tag=13, gc=False):
    """The engine has begun to answer: HTTP status and Content-Type of its response."""

    status: int
    content_type: str


class Chunk(JobFrame, frozen=True, tag=14, gc=False):
    """Bytes of the response body, as the engine sent them. A stream's chunks hold whole events, unless `more`."""

    data: bytes
    more: bool = False  # a part: the next chunk of this job continues this one


class Output(JobFrame, frozen=True, tag=17, gc=False):
    """A piece of the output of a job that has an `input`: one JSON value, and the metrics that go with it."""

    data: bytes
    metrics: bytes = b""
    whole: bool = False  # the output is this value itself, not a list of such values
    more: bool = False  # a part: the next frame of this job continues its `data`


class End(JobFrame, frozen=True, tag=15, gc=False):
    """The run is over and its slot is free again. The last frame of every attempt, also of a stopped one."""

    ending: Ending
    code: str = ""  # for people and programs, when not completed: `engine_dead`, `engine_hung`, ...
    message: str = ""


class Log(Frame, frozen=True, tag=16, gc=False):
    """A line for the person who runs the proxy: what the worker is doing (`loading the model`)."""

    text: str


ToWorker: TypeAlias = Job | Body | Stop | Pause | Resume
ToProxy: TypeAlias = Hello | Credit | Heartbeat | Head | Chunk | Output | End | Log

_NO_FRAMES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(list[ToWorker])
_to_proxy = msgspec.msgpack.Decoder(list[ToProxy])


class BadFrameError(ValueError):
    """The peer sent something that is not of this protocol, and its sentence says what. The connection is closed."""


def encode(frames: list[Frame]) -> bytes:
    """Frames to one WebSocket message."""
    return _encoder.encode(frames)


def decode_to_worker(message: bytes) -> list[ToWorker]:
    """One message from the proxy, checked; `BadFrameError` if it is none."""
    try:
        return _to_worker.decode(message)
    except _NO_FRAMES as error:
        raise BadFrameError(str(error)) from error


def decode_to_proxy(message: bytes) -> list[ToProxy]:
    """One message from a worker, checked; `BadFrameError` if it is none."""
    if (
        _count(message) > MOST_FRAMES
    ):  # a frame can be two bytes, and a message of those a quarter of a million
        raise BadFrameError(f"a message may have {MOST_FRAMES} frames")
    try:
        return _to_proxy.decode(message)
    except _NO_FRAMES as error:
        raise BadFrameError(str(error)) from error


def _count(message: bytes) -> int:
    """How many frames a message says that it has, without a look at them."""
    match message[:1]:
        case b"\xdc":
            return int.from_bytes(message[1:3])
        case b"\xdd":
            return int.from_bytes(message[1:5])
        case _:
            return 0  # fifteen at most, or no message
