"""A job store that notes how it is used."""

from collections.abc import Callable
from typing import Any, cast

from proxy.store.base import JobStore


class RecordedStore:
    """The contract over another store, which does the work; `calls` has every call and its arguments."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._recorded(name, found) if callable(found) else found

    def naming(self, *words: str) -> list[str]:
        """The calls whose arguments name one of these."""
        return [call for call in self.calls if any(word in call for word in words)]

    def _recorded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(f"{name}{arguments}{named}")
            return method(*arguments, **named)

        return call


def recorded(store: JobStore) -> tuple[RecordedStore, JobStore]:
    """The same object twice: to look at, and to give away as a store."""
    made = RecordedStore(store)
    return made, cast("JobStore", made)
