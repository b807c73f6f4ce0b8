"""Return the memory of large request bodies to the operating system."""

import ctypes

# The relay's own buffers are smaller than this, and keep the cheaper allocation from the heap.
MMAP_THRESHOLD_BYTES = 256 * 1024

# From malloc.h.
_M_MMAP_THRESHOLD = -3


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
