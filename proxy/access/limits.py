"""The limits of clients: rates of requests, concurrent requests, and memory for their bodies.

Rates are limited per key, endpoint and operation, with the numbers of Runpod's public platform. The
request limit grows with the endpoint: it is at least `REQUESTS_PER_WORKER` for each running worker.
As on that platform, the window is a fixed interval of ten seconds, so the values in the response
headers are exactly those that are enforced.

A limit on the number of requests is not enough for memory: 400 concurrent calls of 20 MB each are
8 GB. Therefore bytes are reserved for a body before it is read, and released when its request is
over. If the budget is exhausted, a client is refused and should retry; a worker waits, because it
posts its result only once.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from proxy.jobs.model import EndpointId

WINDOW_SECONDS = 10

# Requests in a window for each running worker, if that is more than the limit of the operation.
REQUESTS_PER_WORKER = 50

# Number of counters above which those of past windows are deleted.
MAX_IDLE_COUNTERS = 10_000


class Limit(NamedTuple):
    """Maximum number of requests in a window, and of concurrent requests. None: unlimited."""

    requests: int | None
    concurrent: int | None = None


LIMITS: dict[str, Limit] = {
    "runsync": Limit(2000, 400),
    "run": Limit(1000, 200),
    "status": Limit(2000, 400),
    "stream": Limit(2000, 400),
    "cancel": Limit(100, 20),
    "purge-queue": Limit(2),
    "openai": Limit(2000, 400),
    "requests": Limit(10, 2),
}
SAME_AS = {"status-sync": "status", "health": "status", "retry": "cancel"}
"""Operations that the platform's table does not list, and the operation whose limit they share."""


class LimitedError(Exception):
    """A request exceeds a rate limit.

    Attributes:
        seconds: time after which the client should retry.
        status: content of the rate-limit headers, or None if the operation has no request limit.

    """

    def __init__(self, sentence: str, seconds: int, status: "RateLimitStatus | None") -> None:
        super().__init__(sentence)
        self.seconds = seconds
        self.status = status


class RateLimitStatus(NamedTuple):
    """Request limit, remaining requests in this window, and seconds until the next window."""

    limit: int
    remaining: int
    reset: int


def limit_headers(status: RateLimitStatus | None) -> list[tuple[bytes, bytes]]:
    """Return OpenAI's rate limit headers; none for an operation without a request limit."""
    if status is None:
        return []
    return [
        (b"x-ratelimit-limit-requests", str(status.limit).encode()),
        (b"x-ratelimit-remaining-requests", str(status.remaining).encode()),
        (b"x-ratelimit-reset-requests", b"%ds" % status.reset),
    ]


@dataclass(slots=True)
class _Use:
    """Counter of one key and operation: the current window, its requests, and open requests."""

    window: int = 0
    count: int = 0
    open: int = 0


class Limits:
    """Counts requests, and refuses those that exceed a limit."""

    def __init__(
        self,
        table: Mapping[str, Limit],
        per_worker: int,
        running: Callable[[EndpointId], int],
        time: Callable[[], float] | None = None,
    ) -> None:
        """Create the counters.

        Args:
            table: limits by operation.
            per_worker: requests in a window for each running worker.
            running: returns the number of running workers of an endpoint.
            time: returns the time in seconds; by default that of the running event loop.

        """
        self._table = table
        self._per_worker = per_worker
        self._running = running
        self._time = time or _loop_time
        self._uses: dict[tuple[str, EndpointId, str], _Use] = {}
        self._cleanup_size = MAX_IDLE_COUNTERS

    def enter(
        self, key: str, endpoint: EndpointId, operation: str, now: float | None = None
    ) -> tuple[Callable[[], None], RateLimitStatus | None]:
        """Count the start of a request; `now`: the time, if the caller has read it already.

        Returns a function that counts its end, and the content of the rate-limit headers. Raises
        LimitedError if the request exceeds a limit.
        """
        operation = SAME_AS.get(operation, operation)
        limit = self._table.get(operation)
        if limit is None:
            return _do_nothing, None
        use = self._uses.get((key, endpoint, operation))
        if use is None:
            use = self._begin((key, endpoint, operation))
        if now is None:
            now = self._time()
        window = int(now // WINDOW_SECONDS)
        if use.window != window:
            use.window = window
            use.count = 0
        status = None
        if limit.requests is not None:
            allowed = limit.requests
            # Workers are counted only when the answer matters, because it takes time.
            if use.count >= allowed:
                allowed = max(allowed, self._running(endpoint) * self._per_worker)
            reset = max(1, int((window + 1) * WINDOW_SECONDS - now + 0.999))
            if use.count >= allowed:
                raise LimitedError(
                    f"Rate limit of `{operation}` exceeded: {allowed} in {WINDOW_SECONDS} s."
                    f" Retry in {reset} s.",
                    reset,
                    RateLimitStatus(allowed, 0, reset),
                )
            status = RateLimitStatus(allowed, allowed - use.count - 1, reset)
        if limit.concurrent is not None and use.open >= limit.concurrent:
            raise LimitedError(
                f"Rate limit of `{operation}` exceeded: {limit.concurrent} concurrent requests."
                " Retry when one of them has ended.",
                1,
                status,
            )
        use.count += 1
        use.open += 1

        def leave() -> None:
            use.open -= 1

        return leave, status

    def _begin(self, name: tuple[str, EndpointId, str]) -> _Use:
        """Add a counter, and delete those of past windows if there are too many."""
        if len(self._uses) > self._cleanup_size:
            window = int(self._time() // WINDOW_SECONDS)
            self._uses = {
                one: use for one, use in self._uses.items() if use.open or use.window == window
            }
            # Doubling keeps the amortized cost of a new counter constant.
            self._cleanup_size = max(MAX_IDLE_COUNTERS, 2 * len(self._uses))
        return self._uses.setdefault(name, _Use())


def _do_nothing() -> None:
    pass


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


_LIMIT = re.compile(
    r"(?P<operation>[a-z-]+)=(?P<requests>[0-9]{1,9})(/(?P<concurrent>[0-9]{1,9}))?"
)


def read_limit(text: str) -> tuple[str, Limit]:
    """Parse `OPERATION=REQUESTS[/CONCURRENT]` into the operation and its limit."""
    found = _LIMIT.fullmatch(text)
    if found is None or found["operation"] not in LIMITS:
        known = ", ".join(LIMITS)
        raise ValueError(
            f"{text!r}: use OPERATION=REQUESTS or OPERATION=REQUESTS/CONCURRENT;"
            f" the operations are {known}"
        )
    requests = int(found["requests"])
    if found["concurrent"] is not None:
        concurrent = int(found["concurrent"])
    elif requests:
        concurrent = LIMITS[found["operation"]].concurrent or 0
    else:
        # OPERATION=0 removes both limits.
        concurrent = 0
    return found["operation"], Limit(requests or None, concurrent or None)


class BudgetError(Exception):
    """The budget has not enough free bytes for a body."""


class Share:
    """The bytes of a budget that one request has reserved, on behalf of a holder."""

    __slots__ = ("_budget", "_holder", "held")

    def __init__(self, budget: "Budget", holder: str) -> None:
        self._budget = budget
        self._holder = holder
        self.held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def grow(self, size: int) -> None:
        """Reserve `size` more bytes. Raises BudgetError if they are not free or if others wait."""
        if not self._budget.acquire(size, self._holder):
            raise BudgetError(
                "The server is out of memory for requests and responses. Retry shortly."
            )
        self.held += size

    async def wait(self, size: int) -> None:
        """Wait until `size` more bytes are free, and reserve them."""
        await self._budget.wait(size, self._holder)
        self.held += size

    def grow_to(self, size: int) -> None:
        """Reserve as many bytes as are missing to `size`. Raises BudgetError as `grow` does."""
        if size > self.held:
            self.grow(size - self.held)

    async def wait_to(self, size: int) -> None:
        """Reserve as many bytes as are missing to `size`; wait until they are free."""
        if size > self.held:
            await self.wait(size - self.held)

    def hold(self, size: int) -> None:
        """Reserve as many bytes as are missing to `size`, even above the limits: they are in use
        already.
        """
        if size > self.held:
            self._budget.reserve(size - self.held, self._holder)
            self.held = size

    def give_back(self) -> None:
        """Release all reserved bytes; a no-op the second time."""
        held = self.held
        self.held = 0
        self._budget.release(held, self._holder)


class _Waiter(NamedTuple):
    """A request that waits for bytes. `turn` is unique, so two waiters are never equal."""

    size: int
    holder: str
    turn: asyncio.Future[None]


class Budget:
    """A number of bytes that requests share, with a FIFO queue of waiting requests."""

    def __init__(self, limit: int, each: int | None = None) -> None:
        """Create a budget of `limit` bytes, of which each holder may reserve at most `each`."""
        self.limit = limit
        self.used = 0
        self._each = limit if each is None else each
        self._held: defaultdict[str, int] = defaultdict(int)
        # In the order of their requests.
        self._waiting: dict[_Waiter, None] = {}

    def share(self, holder: str = "") -> Share:
        """Return a share for one request: a context manager that releases it at the end."""
        return Share(self, holder)

    def acquire(self, size: int, holder: str) -> bool:
        """Reserve `size` bytes; return False if that exceeds a limit or if other requests wait."""
        held = self._held.get(holder, 0)
        if self.used + size > self.limit or self._waiting or held + size > self._each:
            return False
        self.reserve(size, holder)
        return True

    async def wait(self, size: int, holder: str) -> None:
        """Reserve `size` bytes when all earlier waiters have been served and the bytes are free.

        A holder at its limit waits for its own earlier requests, and others do not wait for it. A
        size above a limit is granted when all bytes of that limit are free.
        """
        waiter = _Waiter(size, holder, asyncio.get_running_loop().create_future())
        self._waiting[waiter] = None
        self._grant()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():
                # The bytes were granted before the cancellation was delivered.
                self.release(size, holder)
            else:
                self._waiting.pop(waiter, None)
                self._grant()
            raise

    def release(self, size: int, holder: str) -> None:
        """Release `size` bytes of a holder, and grant them to waiting requests."""
        self.used -= size
        self._held[holder] -= size
        if not self._held[holder]:
            del self._held[holder]
        self._grant()

    def _grant(self) -> None:
        """Serve waiting requests in order, as far as the free bytes allow."""
        at_limit: set[str] = set()
        for waiter in tuple(self._waiting):
            size, holder, turn = waiter
            held = self._held.get(holder, 0)
            if holder in at_limit or (held and held + size > self._each):
                at_limit.add(holder)
                continue
            if self.used and self.used + size > self.limit:
                return
            del self._waiting[waiter]
            # A cancelled waiter has not removed itself yet.
            if not turn.done():
                self.reserve(size, holder)
                turn.set_result(None)

    def reserve(self, size: int, holder: str) -> None:
        """Reserve `size` bytes at once, even above the limits."""
        self.used += size
        self._held[holder] += size


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """The rate limits of requests, and the byte budgets of their bodies and their answers."""

    requests: Limits
    bodies: Budget
    answers: Budget
