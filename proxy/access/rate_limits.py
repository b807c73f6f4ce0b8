"""How much one key may ask of one endpoint: requests in ten seconds, and requests at once, operation by operation.

The numbers are the public platform's. The first one grows with the endpoint: it is at least so many for each running
worker. A window is a fixed stretch of ten seconds, as the platform counts, so what a client reads in the headers is
what is enforced.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from proxy.jobs.model import EndpointId

WINDOW_SECONDS = 10
PER_WORKER = 50  # requests in a window for each running worker, where that is more than the base
FORGET_ABOVE = 10_000  # entries of past windows that are kept before they are cleared out


class Limit(NamedTuple):
    """Requests in a window, and at once. None: as many as come."""

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
"""Operations that the platform's table does not name."""


class LimitedError(Exception):
    """Too much was asked; `seconds` says when to come back, `told` what the headers say."""

    def __init__(self, sentence: str, seconds: int, told: "RateLimitStatus | None") -> None:
        super().__init__(sentence)
        self.seconds, self.told = seconds, told


class RateLimitStatus(NamedTuple):
    """What a client may know: its limit, what is left of it, and the seconds until it begins anew."""

    limit: int
    remaining: int
    reset: int


@dataclass(slots=True)
class _Use:
    """What one key has used of one operation."""

    window: int = 0
    count: int = 0
    open: int = 0


class Limits:
    """Counts, and refuses what is too much."""

    def __init__(
        self,
        table: Mapping[str, Limit],
        per_worker: int,
        running: Callable[[EndpointId], int],
        time: Callable[[], float],
    ) -> None:
        self._table, self._per_worker, self._running, self._time = table, per_worker, running, time
        self._uses: dict[tuple[str, EndpointId, str], _Use] = {}
        self._forget_above = FORGET_ABOVE

    def enter(
        self, key: str, endpoint: EndpointId, operation: str
    ) -> tuple[Callable[[], None], RateLimitStatus | None]:
        """Begin a request: gives what ends it, and what its client is told; or `LimitedError`."""
        operation = SAME_AS.get(operation, operation)
        limit = self._table.get(operation)
        if limit is None:
            return _nothing, None
        use = self._uses.get((key, endpoint, operation))
        if use is None:
            use = self._begin((key, endpoint, operation))
        now = self._time()
        window = int(now // WINDOW_SECONDS)
        if use.window != window:
            use.window, use.count = window, 0
        told = None
        if limit.requests is not None:
            most = limit.requests
            if use.count >= most:  # only then is it worth to ask how many workers there are
                most = max(most, self._running(endpoint) * self._per_worker)
            reset = max(1, int((window + 1) * WINDOW_SECONDS - now + 0.999))
            if use.count >= most:
                sentence = f"More than {most} {operation} requests in {WINDOW_SECONDS} seconds. Try again in {reset} s."
                raise LimitedError(sentence, reset, RateLimitStatus(most, 0, reset))
            told = RateLimitStatus(most, most - use.count - 1, reset)
        if limit.concurrent is not None and use.open >= limit.concurrent:
            raise LimitedError(
                f"More than {limit.concurrent} {operation} requests at once.", 1, told
            )
        use.count += 1
        use.open += 1

        def leave() -> None:
            use.open -= 1

        return leave, told

    def _begin(self, name: tuple[str, EndpointId, str]) -> _Use:
        if len(self._uses) > self._forget_above:
            window = int(self._time() // WINDOW_SECONDS)
            self._uses = {
                one: use for one, use in self._uses.items() if use.open or use.window == window
            }
            self._forget_above = max(
                FORGET_ABOVE, 2 * len(self._uses)
            )  # so that each new entry pays a constant share
        return self._uses.setdefault(name, _Use())


def _nothing() -> None:
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
