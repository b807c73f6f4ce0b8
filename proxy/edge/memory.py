"""Return freed memory to the operating system."""

import asyncio
import ctypes
import gc
from mmap import PAGESIZE
from pathlib import Path

# The relay's own buffers are smaller than this, and keep the cheaper allocation from the heap.
MMAP_THRESHOLD_BYTES = 256 * 1024

# From malloc.h.
_M_MMAP_THRESHOLD = -3

# The interval between two looks at the memory of the process.
TRIM_SECONDS = 10.0
# Memory above that of the start from which on free parts of the heap are returned.
TRIM_ABOVE_BYTES = 32 * 1024 * 1024
# New objects until the youngest are collected; collections of a generation until the next one.
COLLECTOR_THRESHOLDS = (50_000, 20, 100)


def return_large_blocks() -> None:
    """Make glibc return large blocks to the system as soon as they are freed; else do nothing.

    By default glibc raises its mmap threshold when the first large block is freed. From then on
    bodies of 20 MB are allocated in the heap among everything else, and after a few bursts of them
    the process keeps hundreds of MB although little of it is in use. A fixed threshold prevents
    that.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def tune_collector() -> None:
    """Let Python's garbage collector run less often, and leave out what exists now.

    By default it looks at all objects of the process whenever their number has grown by a quarter,
    which takes 50 ms after the start, and more with many connections.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


async def trim_heap() -> None:
    """Return free parts of the heap to the system every few seconds, until cancelled.

    Smaller blocks, such as the elements of an output, leave gaps that glibc keeps. A thread returns
    them, because that takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    base = _resident_bytes()
    while trim is not None and base:
        await asyncio.sleep(TRIM_SECONDS)
        if _resident_bytes() > base + TRIM_ABOVE_BYTES:
            await asyncio.to_thread(trim, 0)
    await asyncio.Event().wait()


def _resident_bytes() -> int:
    """Return the memory of the process; 0 on a system without `/proc`."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * PAGESIZE
