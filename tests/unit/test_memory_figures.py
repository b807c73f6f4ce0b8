"""The figures that the soak test compares can be read; the test itself takes 15 minutes."""

from harness.proxy.memory_process import TABLES, held

from proxy.app import Parts


async def test_every_figure_is_there(parts: Parts) -> None:
    figures = held(parts, objects=True)
    assert set(figures) == {"rss", "fds", "tasks", "objects", *TABLES}
    assert figures["rss"] > 0
    assert figures["objects"] > 0
