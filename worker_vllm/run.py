"""One run: one attempt of one job in this worker, from its first frame to its `End`."""

import asyncio
from dataclasses import dataclass, field

from proxy.wire.frames import STREAM_WINDOW, Body, End, Ending, Job
from worker_vllm.asgi import Request

MESSAGE = 2_000  # characters of the sentence in an `End`
BODY_BYTES = 64 * 1024 * 1024  # the biggest body a worker takes; the proxy's own limits are lower


class BadBodyError(ValueError):
    """The parts of a body do not make what the job announced."""


@dataclass(slots=True)
class Run:
    """What the worker knows about a run."""

    job: Job
    body: bytearray = field(default_factory=bytearray)
    task: "asyncio.Task[None] | None" = None  # there once the body is whole
    has_begun: bool = False  # the task has made its first step
    verdict: End | None = (
        None  # how it shall end, once somebody else than the engine has decided that
    )
    sent: int = 0  # frames handed to the socket
    has_output: bool = False  # a byte of the answer exists
    is_ending: bool = False  # its `End` waits in the outbox
    is_paused: bool = False  # by the proxy
    has_window: bool = (
        False  # its answer is a stream of events, or a job's outputs: the proxy says when to go on
    )
    is_in_event: bool = False  # a part of an event was sent, and more of it follows
    unanswered: int = 0  # bytes of the stream since the proxy last said to go on
    is_held_back: bool = False  # waits for room, not for the engine
    room: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_arriving(self) -> bool:
        """Its body is not whole yet."""
        return self.task is None and not self.is_ending

    @property
    def may_send(self) -> bool:
        """Neither paused nor at the end of its window."""
        return not self.is_paused and self.unanswered < STREAM_WINDOW

    @property
    def waits_for_engine(self) -> bool:
        return self.task is not None and not self.is_ending and not self.is_held_back

    def end(self, ending: Ending, code: str = "", message: str = "") -> End:
        """The last frame of this run."""
        return End(self.job.job, self.job.attempt, ending, code, message[:MESSAGE])

    def add(self, part: Body) -> bool:
        """Take a part of the body. True when it is whole."""
        self.body += part.data
        if len(self.body) > self.job.size or (not part.more and len(self.body) != self.job.size):
            raise BadBodyError(f"{len(self.body)} bytes of a body of {self.job.size}")
        return not part.more

    def request(self) -> Request:
        """What to ask the engine."""
        body = bytes(self.body)
        self.body.clear()
        return Request(self.job.method, self.job.path, self.job.content_type, body)
