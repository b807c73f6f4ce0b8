"""The border to code whose exceptions cannot be listed: vLLM, its argument types, WebSockets."""

from collections.abc import Callable
from types import TracebackType


class ForeignErrors:
    """Raises `error_class(describe(error))` in place of any exception that a `with` block raises.

    Exceptions of `error_class` itself pass unchanged, and so do those that end a task or the
    process (`CancelledError`, `SystemExit`, `KeyboardInterrupt`). The original exception is the
    cause of the new one. An instance has no state, so that any number of blocks can share it.
    """

    __slots__ = ("_describe", "_error_class")

    def __init__(self, error_class: type[Exception], describe: Callable[[Exception], str]) -> None:
        self._error_class = error_class
        self._describe = describe

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, self._error_class):
            raise self._error_class(self._describe(error)) from error
