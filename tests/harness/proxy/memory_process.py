"""A proxy in a process of its own that prints its resource usage every second.

`python -m harness.proxy.memory_process` reads its settings from `PROXY_*`. The first line is its
URL; each other line is JSON: memory, open files, tasks, and the sizes of its tables.
"""

import asyncio
import ctypes
import gc
import json
import os
import sys
from pathlib import Path

import structlog
import uvloop

from proxy.app import Parts, compose
from proxy.serving import listen, running, until_signal
from proxy.settings import Settings

PAGE = os.sysconf("SC_PAGE_SIZE")
# Counting all objects takes a while.
OBJECTS_EVERY = 10
# The sizes of tables that must not grow.
TABLES = (
    "mailboxes",
    "subscriptions",
    "consumers",
    "recordings",
    "background",
    "registry",
    "unhealthy",
)


class MallocInfo(ctypes.Structure):
    """The result of `mallinfo2` of glibc: numbers and sizes in bytes, over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def heap_bytes() -> int:
    """Return the memory that `malloc` has handed out, without the gaps that RSS contains.

    0 without glibc 2.33. Python's small objects are not in it: `blocks` counts them.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = MallocInfo
    found = mallinfo()
    heap: int = found.uordblks + found.hblkhd
    return heap


def held(parts: Parts, *, objects: bool) -> dict[str, int]:
    """Return the current resource usage."""
    found = {
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
        "heap": heap_bytes(),
        "fds": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "mailboxes": len(parts.interactive),
        "subscriptions": len(parts.events),
        "consumers": len(parts.durable._consumers),
        "recordings": len(parts.recorder),
        "background": len(parts.background._tasks),
        "registry": len(parts.registry._workers),
        "unhealthy": len(parts.fleet.unhealthy),
    }
    if objects:
        gc.collect()
        found["objects"] = len(gc.get_objects())
        found["blocks"] = sys.getallocatedblocks()
    return found


async def tell(parts: Parts) -> None:
    """Print the resource usage every second."""
    number = 0
    while True:
        print(json.dumps(held(parts, objects=number % OBJECTS_EVERY == 0)), flush=True)
        number += 1
        await asyncio.sleep(1)


async def serve() -> None:
    """Serve until a signal arrives."""
    settings = Settings()
    parts, listener, stopped = (
        compose(settings),
        listen(settings),
        asyncio.create_task(until_signal()),
    )
    async with running(parts, listener):
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        telling = asyncio.create_task(tell(parts))
        await asyncio.wait({stopped, telling}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()
        telling.cancel()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    uvloop.run(serve())
