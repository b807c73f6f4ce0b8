"""Ctrl-C while a program imports its modules: it ends the process without a traceback."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_interrupt() -> Iterator[None]:
    """Let SIGINT end the process in a `with` block, as it ends programs that do not handle it.

    Outside of it SIGINT raises KeyboardInterrupt. A process that ignores SIGINT still ignores it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
