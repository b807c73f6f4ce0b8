"""A job store that records its calls."""

from collections.abc import Callable
from typing import Any, cast

from proxy.store.base import JobStore


class RecordedStore:
    """A job store that delegates to another one; `calls` has every call with its arguments."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._recorded(name, found) if callable(found) else found

    def naming(self, *words: str) -> list[str]:
        """Return the calls whose arguments contain one of these words."""
        return [call for call in self.calls if any(word in call for word in words)]

    def _recorded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(f"{name}{arguments}{named}")
            return method(*arguments, **named)

        return call


def recorded(store: JobStore) -> tuple[RecordedStore, JobStore]:
    """Return the same object twice: once for inspection, and once typed as a store."""
    made = RecordedStore(store)
    return made, cast("JobStore", made)
