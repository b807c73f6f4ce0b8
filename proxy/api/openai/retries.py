"""Retries of OpenAI calls: a repeated call gets the answer of the run that its first attempt began.

A call can be repeated under a key: its `Idempotency-Key`, or, by the SDKs that count their retries,
the digest of its body. If its connection ends too early, the run continues for a while
without a client (the call is *detached*). A retry with the same key claims the call, and receives
the bytes that its mailbox has kept and then those that follow. A complete answer is kept too. See
docs/decisions/0018.

A key belongs to one owner, one endpoint and one path. Only the digest of a large body takes time.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from proxy.access.limits import Budget
from proxy.api.idempotency import Repetition, body_digest, key_in_use, key_reused
from proxy.jobs.lifecycle import Status
from proxy.jobs.model import FIRST_ERROR_STATUS, EndpointId, Owner, Request
from proxy.service.interactive import InteractiveJobs
from proxy.service.json_text import INLINE_MAX_BYTES, in_thread_if_large
from proxy.service.kept import KEPT_MAX_BYTES, KeptAnswer
from proxy.service.mailbox import Mailbox

# The grace period after an SDK's first attempt, which has no key. OpenAI's SDKs send their first
# retry after 0.375 to 0.5 s.
FIRST_ATTEMPT_GRACE_SECONDS = 0.75
# A complete answer can be repeated for this long.
KEPT_ANSWER_SECONDS = 60.0
# All kept answers, and the request bodies of detached calls.
KEPT_BUDGET_BYTES = 64 * 1024 * 1024
# The approximate memory of a detached call or a complete answer, without its bytes.
CALL_OVERHEAD_BYTES = 2048
FIRST_SERVER_ERROR_STATUS = 500
# Errors of an engine that another run can avoid: timeout, conflict, too early, too many requests.
PASSING_STATUSES = (408, 409, 425, 429)


class Response(Protocol):
    """The response to one request."""

    has_begun: bool
    """True once its start was sent."""


class RetryKey(NamedTuple):
    """The key of a call; `name` is its `Idempotency-Key` (a text) or the digest of its body."""

    owner: Owner
    endpoint: EndpointId
    path: str
    name: str | bytes


@dataclass(frozen=True, slots=True)
class CallIdentity:
    """One request for a call. `digest` is empty until it is needed."""

    owner: Owner
    endpoint: EndpointId
    request: Request
    repetition: Repetition
    digest: bytes = b""

    @property
    def key(self) -> RetryKey:
        """The key; without an `Idempotency-Key`, only with `digest`."""
        name = self.repetition.key or self.digest
        return RetryKey(self.owner, self.endpoint, self.request.path, name)


async def identify(
    repetition: Repetition, owner: Owner, endpoint: EndpointId, request: Request
) -> CallIdentity:
    """Return the identity of a request; with the digest of its body if it may be a retry."""
    digest = b""
    if repetition.key is not None or repetition.retries:
        work = partial(body_digest, request.content_type)
        digest = await in_thread_if_large(work, request.body)
    return CallIdentity(owner, endpoint, request, repetition, digest)


@dataclass(slots=True, eq=False)
class RepeatableCall:
    """A call that can be repeated.

    `key` is None until it is known: the digest of a body is computed when a client has left early;
    `identity` is needed until then. `held`: the bytes that are reserved besides those of the
    answer. `is_first_attempt`: its last client was an SDK that had not retried, and named no key.
    `until`: the event loop's time at which the complete answer is forgotten.
    """

    mailbox: Mailbox
    kept: KeptAnswer
    is_named: bool
    key: RetryKey | None
    digest: bytes
    identity: CallIdentity | None
    is_first_attempt: bool = False
    is_attached: bool = True
    is_over: bool = False
    held: int = 0
    until: float = 0.0
    timer: asyncio.TimerHandle | None = None


class Retries:
    """The calls that can be repeated.

    `budget`: the memory for kept answers, by owner. `grace`: the seconds that a run continues
    without a client; with 0, it is cancelled at once.
    """

    def __init__(
        self,
        interactive: InteractiveJobs,
        budget: Budget,
        grace: float,
        answer_seconds: float = KEPT_ANSWER_SECONDS,
    ) -> None:
        self._interactive = interactive
        self.budget = budget
        self._grace = grace
        self._answer_seconds = answer_seconds
        # Calls with an `Idempotency-Key`, one for each key, and detached ones without, oldest
        # first.
        self._calls: dict[RetryKey, list[RepeatableCall]] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return sum(map(len, self._calls.values()))

    def call(
        self, identity: CallIdentity, start: Callable[[], Mailbox], reply: Response
    ) -> Mailbox:
        """Return the mailbox of the earlier call that this request repeats, or of a new one.

        `start` begins the job of a new call, `reply` is the response to this request. Raises
        `ApiError` if the key was used with another body, or if its client is still attached.
        """
        call = self._claimed(identity)
        if call is None:
            call = self._new(identity, start())
        self._attach(call, identity, reply)
        return call.mailbox

    def adopt(self, identity: CallIdentity, mailbox: Mailbox, reply: Response) -> None:
        """Note that a call without a key, which has begun already, can be repeated."""
        self._attach(self._new(identity, mailbox), identity, reply)

    def _attach(self, call: RepeatableCall, identity: CallIdentity, reply: Response) -> None:
        call.is_first_attempt = not call.is_named and not identity.repetition.retries
        call.mailbox.on_leave = partial(self._leave, call, reply)

    def close(self) -> None:
        """End the detached calls and forget all answers: the proxy shuts down."""
        self._is_closed = True
        for call in [call for calls in self._calls.values() for call in calls]:
            if not call.is_attached:
                self._end(call)

    def _leave(self, call: RepeatableCall, reply: Response) -> None:
        """Close the mailbox of a call whose relay has ended, or let its run continue.

        The digest of the body is a key until the response start is sent: no SDK repeats a stream
        that has begun, and any other answer is written at once, when it is complete.
        """
        mailbox = call.mailbox
        call.is_attached = False
        is_repeated = call.is_named or not reply.has_begun
        if is_repeated and mailbox.abandoned:
            mailbox.kept = call.kept
        if mailbox.outcome is not None:
            self._finish(call, is_needed=call.is_named or (is_repeated and mailbox.abandoned))
            return
        size = len(mailbox.job.submission.work.body) + CALL_OVERHEAD_BYTES
        may_continue = is_repeated and mailbox.abandoned and self._grace > 0 and not self._is_closed
        if may_continue and not call.kept.is_lost and self._hold(call, size):
            self._detach(call)
        else:
            self._end(call)

    def _claimed(self, identity: CallIdentity) -> RepeatableCall | None:
        if not identity.digest or not (found := self._calls.get(identity.key)):
            return None
        call = found[0]
        if call.digest != identity.digest:
            raise key_reused()
        if call.is_attached:
            raise key_in_use()
        if not call.is_named:
            # No other retry gets it.
            self._unlist(call)
        self._stop_timer(call)
        self._hold(call, 0)
        call.is_attached = True
        call.mailbox.attach()
        return call

    def _new(self, identity: CallIdentity, mailbox: Mailbox) -> RepeatableCall:
        owner = identity.owner
        kept = KeptAnswer(
            partial(self.budget.acquire, holder=owner), partial(self.budget.release, holder=owner)
        )
        is_named = identity.repetition.key is not None
        call = RepeatableCall(
            mailbox,
            kept,
            is_named,
            key=identity.key if identity.digest else None,
            digest=identity.digest,
            identity=None if identity.digest else identity,
        )
        if is_named:
            mailbox.kept = kept
            self._list(call)
        return call

    def _detach(self, call: RepeatableCall) -> None:
        loop = asyncio.get_running_loop()
        grace = self._grace
        if call.is_first_attempt:
            grace = min(grace, FIRST_ATTEMPT_GRACE_SECONDS)
        call.timer = loop.call_later(grace, self._end, call)
        call.mailbox.detach(partial(self._changed, call))
        self._find_key(call)
        self._changed(call)

    def _changed(self, call: RepeatableCall) -> None:
        """Keep what has arrived for a detached call; end it if that is too much."""
        mailbox = call.mailbox
        _absorb(mailbox)
        if mailbox.outcome is not None:
            self._finish(call, is_needed=True)
        elif call.kept.is_lost or mailbox.backlog > KEPT_MAX_BYTES:
            self._end(call)

    def _finish(self, call: RepeatableCall, *, is_needed: bool) -> None:
        """Close the mailbox of a call that has ended; keep its answer if it can be repeated."""
        mailbox = call.mailbox
        if is_needed:
            _absorb(mailbox)
        self._stop_timer(call)
        self._interactive.hang_up(mailbox)
        is_kept = is_needed and _is_repeatable(mailbox) and not call.kept.is_lost
        if not is_kept or self._is_closed or not self._hold(call, CALL_OVERHEAD_BYTES):
            self._drop(call)
            return
        self._find_key(call)
        # Its request body is not needed any longer.
        mailbox.job.submission = mailbox.job.submission.without_body()
        loop = asyncio.get_running_loop()
        call.until = call.until or loop.time() + self._answer_seconds
        call.timer = loop.call_at(call.until, self._drop, call)

    def _end(self, call: RepeatableCall) -> None:
        """Forget a call, and cancel its run if that has not ended."""
        self._drop(call)
        self._interactive.hang_up(call.mailbox)

    def _drop(self, call: RepeatableCall) -> None:
        self._stop_timer(call)
        self._hold(call, 0)
        self._unlist(call)
        call.is_over = True
        call.identity = None
        call.mailbox.kept = None
        call.kept.drop()

    def _stop_timer(self, call: RepeatableCall) -> None:
        call.mailbox.on_change = None
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None

    def _hold(self, call: RepeatableCall, size: int) -> bool:
        """Reserve `size` bytes in place of those that are held; return False, with none held, if
        they are not free.
        """
        if size == call.held:
            return True
        call.kept.let_go(call.held)
        call.held = 0
        if not call.kept.hold(size):
            return False
        call.held = size
        return True

    def _find_key(self, call: RepeatableCall) -> None:
        """List a call under its key; the digest of a large body is computed in a thread."""
        identity = call.identity
        if identity is None:
            self._list(call)
            return
        body = identity.request.body
        work = partial(body_digest, identity.request.content_type, body)
        if len(body) <= INLINE_MAX_BYTES:
            self._identified(call, identity, work())
            return
        computing = asyncio.get_running_loop().run_in_executor(None, work)
        computing.add_done_callback(
            lambda done: (
                None if done.cancelled() else self._identified(call, identity, done.result())
            )
        )

    def _identified(self, call: RepeatableCall, identity: CallIdentity, digest: bytes) -> None:
        if call.is_over or call.is_attached or call.key is not None:
            return
        if self._is_closed:
            self._end(call)
            return
        call.digest = digest
        call.key = RetryKey(identity.owner, identity.endpoint, identity.request.path, digest)
        call.identity = None
        self._list(call)

    def _list(self, call: RepeatableCall) -> None:
        if call.key is None:
            return
        listed = self._calls.setdefault(call.key, [])
        if call not in listed:
            listed.append(call)

    def _unlist(self, call: RepeatableCall) -> None:
        listed = self._calls.get(call.key) if call.key is not None else None
        if listed is None or call not in listed:
            return
        listed.remove(call)
        if not listed and call.key is not None:
            del self._calls[call.key]


def _absorb(mailbox: Mailbox) -> None:
    """Move what waits for a client to what is kept: of a stream as it arrives, else at the end."""
    head = mailbox.response_head
    if head is not None and (head.is_stream or mailbox.outcome is not None):
        while mailbox.consume():
            pass


def _is_repeatable(mailbox: Mailbox) -> bool:
    """Return True if the complete answer is the right one for a repetition of the call.

    An error of the request is, because every run would answer it in the same way. Every other error
    is not: another run may succeed.
    """
    head, outcome = mailbox.response_head, mailbox.outcome
    if head is None or outcome is None or not outcome.answered:
        return False
    if FIRST_ERROR_STATUS <= head.status < FIRST_SERVER_ERROR_STATUS:
        return head.status not in PASSING_STATUSES
    return mailbox.job.status is Status.COMPLETED
