"""Distribution of a parallel run over its processes (pytest-xdist): one unit of work is one file."""

from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ENGINES = "tests/real/"
LONGEST_FIRST = (ENGINES, "tests/stories/", "tests/jobs/", "tests/edge/", "tests/clients/")


class FileScheduling(LoadScopeScheduling):
    """Give each process whole files, so that a module's fixtures are made once, in the order of collection.

    All tests with real vLLM go to one process: they share its engines.
    """

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return ENGINES if path.startswith(ENGINES) else path


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Sort tests so that the folders with the longest files begin and short files fill the end."""
    return sorted(items, key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    ranks = [rank for rank, folder in enumerate(LONGEST_FIRST) if nodeid.startswith(folder)]
    return ranks[0] if ranks else len(LONGEST_FIRST)
