"""The border to code whose exceptions cannot be listed: vLLM, its argument types, WebSockets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def foreign_errors(
    error_class: type[Exception], describe: Callable[[Exception], str]
) -> Iterator[None]:
    """Raise `error_class(describe(error))` in place of any exception that the block raises.

    Exceptions of `error_class` itself pass unchanged, and so do those that end a task or the
    process (`CancelledError`, `SystemExit`, `KeyboardInterrupt`). The original exception is the
    cause of the new one.
    """
    try:
        yield
    except error_class:
        raise
    except Exception as error:
        raise error_class(describe(error)) from error
