"""The cost of a request is proportional to its size.

No body, number or name of a client blocks the event loop or exhausts the memory.
"""

import asyncio
import http.client
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from harness.load import costly_bodies
from harness.load.figures import tell
from harness.load.lag import watching
from harness.proxy.server import CHAT, Proxy, serving

pytestmark = pytest.mark.slow

MB = 1024 * 1024
MEMORY_ABOVE = 40 * MB  # in addition to the body
# Seconds that the event loop may be blocked, in the best of this number of tries. Slower
# tries are due to other work of the machine.
STANDSTILL, TRIES = 0.05, 3
RUNSYNC = "/v2/default/runsync?wait=1000"


class Answer(NamedTuple):
    status: int
    body: bytes


def ask(
    url: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send one request; for use in a thread, so that the client does not block the event loop."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())
    finally:
        connection.close()


def forget() -> int:
    """Reset the peak memory of this process; return its current memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(row: str) -> int:
    """Return the memory of this process: current (VmRSS), or the peak since the reset (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(row))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict() -> AsyncIterator[Proxy]:
    """A proxy without workers, whose endpoints have one model and separate limits each."""
    async with serving(
        endpoint=["default=demo", *(f"e{one}=demo{one}" for one in range(5))]
    ) as running:
        yield running


class Cost(NamedTuple):
    """The cost of one body: the blocking time of the event loop, and the memory beyond the body."""

    seconds: float
    memory: int


async def cost(proxy: Proxy, path: str, name: str, body: bytes) -> Cost:
    """Send a body, check the response, and return the cost."""
    before = forget()
    async with watching() as lag:
        answered = await asyncio.to_thread(ask, proxy.url, "POST", path, body)
    assert answered.status in ({400, 404} if path == CHAT else {200, 400}), (
        name,
        answered.status,
        answered.body[:200],
    )
    assert len(answered.body) < 1000, name
    json.loads(answered.body)
    return Cost(lag.longest, resident("VmHWM") - before - len(body))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", [CHAT, RUNSYNC])
async def test_a_hostile_body_uses_memory_in_proportion_to_its_size(
    strict: Proxy, path: str
) -> None:
    costs = {
        name: await cost(strict, path, name, body) for name, body in costly_bodies.bodies().items()
    }
    slowest, dearest = (
        max(costs, key=lambda name, field=field: costs[name][field]) for field in (0, 1)
    )
    tell(f"cost.body.lag {path} {slowest}", round(costs[slowest].seconds * 1000, 1), "<= 50", "ms")
    tell(f"cost.body.memory {path} {dearest}", round(costs[dearest].memory / MB, 1), "<= 40", "MB")
    assert costs[dearest].memory < MEMORY_ABOVE, dearest


@pytest.mark.torture
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", [CHAT, RUNSYNC])
async def test_a_hostile_body_does_not_block_the_event_loop(strict: Proxy, path: str) -> None:
    best: dict[str, float] = {}
    for _ in range(TRIES):  # round-robin, because a machine can be slow for seconds
        for name, body in costly_bodies.bodies().items():
            best[name] = min(
                best.get(name, math.inf), (await cost(strict, path, name, body)).seconds
            )
    for name in sorted(best, key=best.__getitem__)[-5:]:
        tell(f"cost.body.lag {path} {name}", round(best[name] * 1000, 1), "<= 50", "ms")
    assert max(best.values()) <= STANDSTILL


@pytest.mark.asyncio(loop_scope="module")
async def test_a_hostile_option_is_rejected(strict: Proxy) -> None:
    for name, body in costly_bodies.options().items():
        answered = await asyncio.to_thread(ask, strict.url, "POST", RUNSYNC, body)
        assert answered.status == 400, (name, answered)
        assert len(answered.body) < 1000, name


LONG = "x" * 30_000
DIGITS = "9" * 10_000
READS = ("status", "stream", "status-sync")
NAMES = (LONG, "%00", "%ff%fe", "%ed%a0%80", "..%2f..", "%0d%0aX:1")
NUMBERS = (DIGITS, "-1", "NaN", "1e9", "%00", "%d9%a1", "1_0", "%ff")
ASKED = [
    *(f"/v2/default/{verb}/{name}" for verb in READS for name in NAMES),
    *(
        f"/v2/default/{verb}/x?{name}={value}"
        for verb in READS
        for name in ("ttl", "wait", "after")
        for value in NUMBERS
    ),
    *(
        f"/v2/e{one}/requests?{name}={NUMBERS[one]}"
        for name in ("before", "limit", "status")
        for one in range(5)
    ),
    "/v2/default/requests?" + "&".join(f"a{number}=" for number in range(4_000)),
    "/v2/default/requests?" + "&" * 30_000,
    "/v2/default/requests?" + "%" * 30_000,
    f"/v2/default/requests?status={LONG}",
    f"/v1/models/{LONG}",
    "/v1/models/%00",
    "/v1/models/%ff",
    f"/v1/{LONG}",
    f"/v2/{LONG}/status/x",
]
HEADERS = [
    *(
        ("x-request-id", LONG),
        ("x-request-id", "\x7f"),
        ("Last-Event-ID", DIGITS),
        ("Last-Event-ID", "\xb2"),
    ),
    *(
        ("x-stainless-read-timeout", DIGITS),
        ("x-stainless-read-timeout", "nan"),
        ("Authorization", LONG),
    ),
    *(("Accept", "text/event-stream, " * 1_500), ("Content-Type", "application/json;" + LONG)),
]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_hostile_name_or_number_is_rejected(strict: Proxy) -> None:
    for path in ASKED:
        answered = await asyncio.to_thread(ask, strict.url, "GET", path)
        assert answered.status in {200, 400, 404, 431}, (path[:200], answered)
        assert len(answered.body) < 4000, path[:200]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("name", "value"), HEADERS, ids=range(len(HEADERS)))
async def test_a_hostile_header_is_rejected_or_ignored(
    strict: Proxy, name: str, value: str
) -> None:
    given = {name: value} | ({"Accept": "text/event-stream"} if name == "Last-Event-ID" else {})
    looked = await asyncio.to_thread(
        ask, strict.url, "GET", "/v2/default/stream/nothing", None, given
    )
    asked = await asyncio.to_thread(
        ask, strict.url, "POST", CHAT, costly_bodies.around(b"1"), given
    )
    assert {looked.status, asked.status} <= {400, 404, 431}, (looked, asked)
    assert len(looked.body + asked.body) < 2000
