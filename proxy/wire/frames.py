"""The worker protocol, version 1: all frames of the WebSocket between a worker and the proxy.

A worker connects to `GET /v2/{endpoint}/worker` with `Authorization: Bearer <worker token>` and
sends `Hello` first. After that each WebSocket message is binary: one msgpack array of frames, with
at most `MESSAGE_BYTES` of payload. A frame is a msgpack array that begins with its tag. New fields
are only ever added at the end and have a default, so either side may be the older one.

Frames that carry `(job, attempt)` belong to that job's lane and keep their order in it. The attempt
is a fencing token: a receiver that holds another attempt of the job ignores the frame.
"""

from typing import Literal, TypeAlias

import msgspec

from proxy.wire.fields import Fields

PROTOCOL = 1

# The ids of endpoints, workers and jobs.
ID_PATTERN = r"[A-Za-z0-9_-]{1,80}"

# The largest output of a job, with the parts of a split event.
OUTPUT_MAX_BYTES = 64 * 1024 * 1024

# Payload of one message. The limit keeps a large body from delaying the tokens of other jobs.
MESSAGE_BYTES = 256 * 1024

# Bodies and chunks that are longer than this are sent in parts, in round-robin order between jobs.
PART_BYTES = 64 * 1024

# With the overhead that `wire.flow` counts for each frame, a message of `MESSAGE_BYTES` has at
# most half this number of frames.
MESSAGE_MAX_FRAMES = 8 * 1024

# Maximum size of a message that either side accepts: MESSAGE_BYTES, one last part, and framing.
SOCKET_BYTES = 512 * 1024

# Bytes of one stream that a worker sends before it waits for `Resume`. `Pause` alone may arrive too
# late for a fast stream.
STREAM_WINDOW = 256 * 1024

# In `Resume`: all bytes are acknowledged.
WHOLE_WINDOW = -1

RESEND = "resend"
"""The feature of a peer that can continue a run after a lost connection or a restart of the proxy:
see `Acknowledge`.
"""

FIELDS = "fields"
"""The feature of a peer that knows `fields` in `Job` and `Head`, and `retry_after` in `End`."""

FEATURES = (RESEND, FIELDS)

# In `Hold`: the worker sends again those frames of this run that the proxy lacks.
SENT_AGAIN = -1

# In `Acknowledge`: the run is over, and its end has been processed.
ALL_FRAMES = -1

HEARTBEAT_SECONDS = 5.0

# Three heartbeats: the jobs of a worker that sends nothing for this long are lost.
LEASE_SECONDS = 15.0

Ending = Literal["completed", "failed", "lost", "released"]
"""The result of a run.

`completed` and `failed`: the engine's response is complete; a failed one carries an error of the
engine, which is passed on to the client. `lost`: the response is missing and the run counts as a
failure (the engine died or hung, or its output was cut short). `released`: a draining worker
returns the job without having started it; this does not count as a failure.
"""


FULL_STATUSES = (429, 503)
"""The statuses with which an engine refuses a request because it is full."""

QUOTA_CODE = b'"insufficient_quota"'
"""Part of the body of a refusal with status 429 that does not mean that the engine is full."""

RETRY_AFTER_SECONDS = 1.0
"""The time for which a full engine takes no further request, if its response has no
`Retry-After`; also the least such time.
"""

UNKNOWN_RUN = "unknown_run"
"""The code of the `End` with which a worker answers a `Stop` for a run that it does not have."""


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An element of a message; the base of all frames."""


class JobFrame(Frame, frozen=True, gc=False):
    """A frame that belongs to one attempt of one job."""

    job: str
    attempt: int


# Proxy to worker


class Job(JobFrame, frozen=True, tag=1, gc=False):
    """Run this request. Its body follows in `Body` frames; the run starts after the last one."""

    method: str
    path: str
    content_type: str
    # Bytes of the whole body.
    size: int
    # The job does not occupy a slot.
    light: bool = False
    # The body is a job's `input`, and is answered with `Output` frames; method and path are empty.
    input: bool = False
    # Header fields of the request (`wire.fields.TO_ENGINE`), only for a peer with `FIELDS`.
    fields: Fields = ()


class Body(JobFrame, frozen=True, tag=2, gc=False):
    """A part of a job's request body."""

    data: bytes
    # Another part follows.
    more: bool = False


class Stop(JobFrame, frozen=True, tag=3, gc=False):
    """Abort this run; its result is not needed. Answered by `End` when the engine has ended it.

    This frame may overtake the job that it stops, whose frames the proxy then does not send. A
    worker that does not know the run answers with `End`, too, with the ending `released`.
    """


class Pause(JobFrame, frozen=True, tag=4, gc=False):
    """Stop sending output of this job until `Resume`."""


class Resume(JobFrame, frozen=True, tag=5, gc=False):
    """Continue a paused job, and acknowledge output of it.

    At most `STREAM_WINDOW` bytes that are not acknowledged may be in flight.
    """

    # Bytes that the reader has taken since the last `Resume`. An older proxy sends no number: then
    # `STREAM_WINDOW` more bytes may be sent.
    acknowledged: int = WHOLE_WINDOW


class Welcome(Frame, frozen=True, tag=6, gc=False):
    """Name the features of the proxy that the worker has too; the answer to a `Hello` with some."""

    features: list[str] = []


class Acknowledge(JobFrame, frozen=True, tag=7, gc=False):
    """Confirm the first `frames` frames of a run: the worker need not keep them any longer.

    The frames of a run are numbered in their order, from 0: its `Head`, each `Chunk`, each output
    value, and its `End`. All parts of an output value together count as one frame. A frame is
    confirmed when the proxy does not need it again: an element of a durable job when it is in the
    store, a chunk when it is in the memory of the proxy, and an `End` (`ALL_FRAMES`) when its
    consequences are in the store.

    After a `Hello`, the worker sends no frame of a run that it lists with `SENT_AGAIN`, until this
    frame or a `Stop` arrives. It then continues with the frame number `frames`.
    """

    frames: int


# Worker to proxy


class Hold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run that a worker still holds when it reconnects, and the number of its frames sent so far,
    or `SENT_AGAIN` if the run came from a proxy with the feature `RESEND`.

    See `Hello`.
    """

    job: str
    attempt: int
    sent: int


class Model(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A model that a worker serves: its name, and the engine's model card, a JSON object."""

    id: str
    card: bytes
    # False for an adapter of a base model.
    base: bool = True
    # The paths to which the engine accepts POST for this model; empty if they are unknown.
    routes: list[str] = []


class Hello(Frame, frozen=True, tag=10, gc=False):
    """Introduce the worker. First frame of a connection; sent again when `models` changes.

    `models` changes at the latest when the engine is ready. `holds` allows a worker to reconnect
    without losing its runs: the proxy keeps a run whose `sent` equals the number of frames that it
    has received, and stops all others. `holds` also lists the runs that have ended so recently that
    their `End` may be lost. So a run that the proxy has assigned, of which it has received no
    frame, and that this process has never listed, did not reach it.

    The proxy continues a run with `SENT_AGAIN`, or stops it: see `Acknowledge`.

    `instance` tells two processes with the same `worker` apart: it is random, and constant while
    the process lives. Workers of older versions send none, and no `features`.
    """

    protocol: int
    worker: str
    # Name and version, for display.
    engine: str
    models: list[Model] = []
    holds: list[Hold] = []
    instance: str = ""
    features: list[str] = []


class Credit(Frame, frozen=True, tag=11, gc=False):
    """Set the number of jobs that this worker can hold; both are 0 while it loads or drains."""

    slots: int
    light: int


class Heartbeat(Frame, frozen=True, tag=12, gc=False):
    """Renew the lease of all runs that this worker holds. Sent every `HEARTBEAT_SECONDS`."""


class Head(JobFrame, frozen=True, tag=13, gc=False):
    """The HTTP status and header fields of the engine's response, which has begun."""

    status: int
    content_type: str
    # Header fields of the response (`wire.fields.for_client`), only for a peer with `FIELDS`.
    fields: Fields = ()


class Chunk(JobFrame, frozen=True, tag=14, gc=False):
    """Bytes of the response body, as the engine sent them.

    A stream's chunk contains whole events, unless `more` is set.
    """

    data: bytes
    # This is a part; the next chunk of this job continues it.
    more: bool = False


class Output(JobFrame, frozen=True, tag=17, gc=False):
    """An element of the output of a job that has an `input`: one JSON value, and its metrics."""

    data: bytes
    metrics: bytes = b""
    # The output is this value itself, not a list of such values.
    whole: bool = False
    # This is a part; the next frame of this job continues its `data`.
    more: bool = False


class End(JobFrame, frozen=True, tag=15, gc=False):
    """The run is over and its slot is free. The last frame of every attempt, also if stopped."""

    ending: Ending
    # An error code such as `engine_dead` or `engine_hung`; empty if the run is completed.
    code: str = ""
    message: str = ""
    # Seconds for which the engine takes no further request, if the run has failed only because the
    # engine is full; otherwise 0. Only for a peer with `FIELDS`.
    retry_after: float = 0.0


class Log(Frame, frozen=True, tag=16, gc=False):
    """A line for the proxy's operator about the worker's state, such as `loading the model`."""

    text: str


ToWorker: TypeAlias = Job | Body | Stop | Pause | Resume | Welcome | Acknowledge
ToProxy: TypeAlias = Hello | Credit | Heartbeat | Head | Chunk | Output | End | Log

_DECODING_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(list[ToWorker])
_to_proxy = msgspec.msgpack.Decoder(list[ToProxy])


class BadFrameError(ValueError):
    """The peer violated this protocol, as the message describes. The connection is closed."""


def encode(frames: list[Frame]) -> bytes:
    """Return the frames as one WebSocket message."""
    return _encoder.encode(frames)


def decode_to_worker(message: bytes) -> list[ToWorker]:
    """Decode and validate a message from the proxy. Raises BadFrameError."""
    try:
        return _to_worker.decode(message)
    except _DECODING_ERRORS as error:
        raise BadFrameError(str(error)) from error


def decode_to_proxy(message: bytes) -> list[ToProxy]:
    """Decode and validate a message from a worker. Raises BadFrameError."""
    # A frame can have two bytes, so a message could otherwise hold a quarter of a million frames.
    if _declared_frames(message) > MESSAGE_MAX_FRAMES:
        raise BadFrameError(f"too many frames in a message: at most {MESSAGE_MAX_FRAMES}")
    try:
        return _to_proxy.decode(message)
    except _DECODING_ERRORS as error:
        raise BadFrameError(str(error)) from error


def _declared_frames(message: bytes) -> int:
    """Return the number of frames that the header of a message declares, without decoding them."""
    match message[:1]:
        case b"\xdc":
            return int.from_bytes(message[1:3])
        case b"\xdd":
            return int.from_bytes(message[1:5])
        case _:
            # A short array of at most fifteen frames, or not an array at all.
            return 0
