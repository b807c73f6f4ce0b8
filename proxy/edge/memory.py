"""What becomes of memory that large bodies have left."""

import ctypes

LARGE_BLOCK = 256 * 1024  # bytes; the relay's own blocks are smaller, and stay as cheap as they are
_M_MMAP_THRESHOLD = -3  # malloc.h


def return_large_blocks() -> None:
    """Give large blocks back to the system as soon as they are free, where the C library is GNU's.

    That one raises its idea of `large` with the first large block that is freed. From then on bodies of 20 MB lie in
    the heap among all else, and some storms of them leave a process of hundreds of MB in which little is used.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, LARGE_BLOCK)
