"""The figures that the soak test compares can be read; the test itself takes 15 minutes."""

from harness.proxy.memory_process import TABLES, heap_bytes, held

from proxy.app import Parts


async def test_every_figure_is_there(parts: Parts) -> None:
    figures = held(parts, objects=True)
    assert set(figures) == {"rss", "fds", "tasks", "objects", "blocks", "heap", *TABLES}
    assert figures["rss"] > 0
    assert figures["objects"] > 0
    assert figures["blocks"] > figures["objects"]


def test_memory_that_is_allocated_is_counted() -> None:
    before = heap_bytes()
    large = [bytes(2_000) for _ in range(1_000)]
    assert heap_bytes() - before >= 2_000 * len(large)
