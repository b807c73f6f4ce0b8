"""Two operations at the same time, interleaved at every step of the proxy.

The first operation begins; after the k-th handle of the proxy since then, the second one begins,
for k = 0, 1, 2, … until the first one is over before its k-th handle. A handle is what the event
loop runs from one `await` to the next, and a step of the store's threads is one too. With the pace
`OVERTAKING`, the first operation has slow threads and the second one has fast threads: if the first
one waits for a thread, the second one runs until it has ended or waits for the same thread.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

from sim.http_client import BrokenError
from sim.loop import StuckError
from sim.node import Node
from sim.scenario import SHARED_MEMORY
from sim.scene import Scene
from sim.world import World

SLOW_THREAD_SECONDS = 0.001
FAST_THREAD_SECONDS = 0.000_001
# The consequences of an operation end in this time.
AFTERMATH_SECONDS = 0.03
# Between two races, for the rate limits of the client.
PAUSE_SECONDS = 10.0
# More steps than any operation has.
MAX_STEPS = 1_000


class Pace(NamedTuple):
    """The mean seconds of a step of a thread, before and after the second operation begins."""

    first: float
    second: float


OVERTAKING = Pace(SLOW_THREAD_SECONDS, FAST_THREAD_SECONDS)
EVEN = Pace(SLOW_THREAD_SECONDS, SLOW_THREAD_SECONDS)
DELAYED = Pace(FAST_THREAD_SECONDS, SLOW_THREAD_SECONDS)


class Operation(NamedTuple):
    """One side of a race.

    `begin`: sends what begins the operation, without waiting. `outcome`: waits until the operation
    has ended, and returns what its caller has received.
    """

    begin: Callable[[], None]
    outcome: Callable[[], Awaitable[Any]]


class Result(NamedTuple):
    """The operation that has won, and the final statuses of durable jobs and of calls."""

    winner: str
    ends: Sequence[str] = ()
    calls: Sequence[str] = ()


class Race(NamedTuple):
    """Two operations, and the check of both outcomes."""

    first: Operation
    second: Operation
    check: Callable[[Any, Any], Awaitable[Result]]


Prepare: TypeAlias = Callable[[Scene], Awaitable[Race]]
"""Brings a scene to the state in which a race can begin."""


@dataclass(slots=True)
class Exploration:
    """The number of interleavings that were tried, the broken invariants, and how often each
    operation has won.
    """

    tried: int
    violations: list[str]
    winners: Counter[str]


async def interleave(
    scene: Scene, first: Operation, second: Operation, steps: int, pace: Pace
) -> tuple[Any, Any, bool]:
    """Begin the second operation after a number of steps of the first one.

    Returns both outcomes, and True if the first operation was over before.
    """
    loop = scene.world.loop
    node = scene.proxy.node
    counted = 0
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        has_begun = True
        loop.on_handle = None
        loop.thread_seconds = pace.second
        scene.world.trace(f"second operation after {counted} steps")
        second.begin()

    def count(of: Node | None) -> None:
        nonlocal counted
        if of is node:
            counted += 1
            if counted == steps:
                begin()

    loop.thread_seconds = pace.first
    scene.world.trace("first operation")
    first.begin()
    if steps:
        loop.on_handle = count
    else:
        begin()
    one = await first.outcome()
    await asyncio.sleep(AFTERMATH_SECONDS)
    was_over = not has_begun
    if was_over:
        begin()
    return one, await second.outcome(), was_over


def explore(
    prepare: Prepare, *, is_reversed: bool, pace: Pace = OVERTAKING, seed: int = 0
) -> Exploration:
    """Try every interleaving of a race, up to the first violation.

    `is_reversed`: the race's second operation begins. `seed`: of the durations of the threads'
    steps and, unless it is 0, of the order of tasks.
    """
    world = World(seed, is_fifo=not seed)
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    exploration = Exploration(0, world.violations, Counter())
    with TemporaryDirectory(dir=base) as folder, world.running():
        scene = Scene(world, Path(folder))
        work = _explore(scene, prepare, exploration, pace, is_reversed=is_reversed)
        try:
            world.loop.run_until_complete(scene.node.start(world.loop, work))
        except StuckError as error:
            world.violate(str(error))
    return exploration


async def _explore(
    scene: Scene, prepare: Prepare, exploration: Exploration, pace: Pace, *, is_reversed: bool
) -> None:
    await scene.start()
    for steps in range(MAX_STEPS):
        is_last = await _try(scene, prepare, exploration, pace, steps, is_reversed=is_reversed)
        exploration.tried += 1
        if exploration.violations:
            exploration.violations.append(f"after {steps} steps")
        if is_last or exploration.violations:
            return
    scene.world.violate(f"an operation has more than {MAX_STEPS} steps")


async def _try(
    scene: Scene,
    prepare: Prepare,
    exploration: Exploration,
    pace: Pace,
    steps: int,
    *,
    is_reversed: bool,
) -> bool:
    """Try one interleaving; return True if the first operation was over before it."""
    loop = scene.world.loop
    loop.thread_seconds = FAST_THREAD_SECONDS
    loop.pass_time(PAUSE_SECONDS)
    was_over = False
    try:
        race = await prepare(scene)
        pair = (race.second, race.first) if is_reversed else (race.first, race.second)
        *outcomes, was_over = await interleave(scene, *pair, steps, pace)
        result = await race.check(*(reversed(outcomes) if is_reversed else outcomes))
        exploration.winners[result.winner] += 1
        await scene.check_quiet(result.ends, result.calls)
        await scene.dismiss_all()
    except (TimeoutError, BrokenError, LookupError) as error:
        scene.world.violate(f"an operation has failed: {error!r}")
    return was_over
