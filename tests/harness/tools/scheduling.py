"""Distribution of a parallel run over its processes (pytest-xdist): one unit of work is one file.

Files with real vLLM form two units: those that share the engines of one fixture, and those that
start their own. Therefore, an engine is started once, and at most two units use the memory for
engines.
"""

from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ENGINES = "tests/real/"
SHARED_ENGINES = tuple(
    f"{ENGINES}test_{name}.py" for name in ("anthropic", "jobs", "openai", "routes")
)
LONGEST_FIRST = (ENGINES, "tests/stories/", "tests/jobs/", "tests/edge/", "tests/clients/")


class FileScheduling(LoadScopeScheduling):
    """Gives each process whole files in the order of collection.

    The fixtures of a module are thus created only once.
    """

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path in SHARED_ENGINES:
            return f"{ENGINES} with shared engines"
        return ENGINES if path.startswith(ENGINES) else path


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Sort tests so that the folders with the longest files begin and short files fill the end."""
    return sorted(items, key=lambda item: _rank(item.nodeid))


def _rank(nodeid: str) -> int:
    ranks = [rank for rank, folder in enumerate(LONGEST_FIRST) if nodeid.startswith(folder)]
    return ranks[0] if ranks else len(LONGEST_FIRST)
