"""Rate limits per key, endpoint and operation: requests in ten seconds, and concurrent requests.

The numbers are those of Runpod's public platform. The request limit grows with the endpoint: it is
at least `REQUESTS_PER_WORKER` for each running worker. As on that platform, the window is a fixed
interval of ten seconds, so the values in the response headers are exactly those that are enforced.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
        time: Callable[[], float],
    ) -> None:
        """Create the counters.

        Args:
            table: limits by operation.
            per_worker: requests in a window for each running worker.
            running: returns the number of running workers of an endpoint.
            time: returns the time in seconds.

        """
        self._table = table
        self._per_worker = per_worker
        self._running = running
        self._time = time
        self._uses: dict[tuple[str, EndpointId, str], _Use] = {}
        self._cleanup_size = MAX_IDLE_COUNTERS

    def enter(
        self, key: str, endpoint: EndpointId, operation: str
    ) -> tuple[Callable[[], None], RateLimitStatus | None]:
        """Count the start of a request.

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
