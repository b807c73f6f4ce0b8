"""`health` counts jobs and workers."""

from harness.proxy.queue_api import QueueClient, long, prompt
from harness.tools.waiting import until
from harness.worker.process import worker

WORKERS = {"idle", "initializing", "ready", "running", "throttled", "unhealthy"}


async def test_counts_are_exact(alone: QueueClient) -> None:
    async with worker(alone.proxy, max_concurrency=1):
        for value in (prompt(), prompt(tempo=1), prompt()):
            await alone.end(await alone.run(value))
        running, waiting = await alone.run(long()), await alone.run(long())
        await until(lambda: _running(alone, 1), what="it runs")
        health = (await alone.call("GET", "health")).body
        assert health["jobs"] == {
            "completed": 2,
            "failed": 1,
            "inProgress": 1,
            "inQueue": 1,
            "retried": 0,
        }
        assert set(health["workers"]) == WORKERS
        assert (
            health["workers"]["running"],
            health["workers"]["idle"],
            health["workers"]["ready"],
        ) == (1, 0, 1)
        for job in (running, waiting):
            await alone.call("POST", f"cancel/{job}")
        await until(lambda: _running(alone, 0), what="it is idle")
        assert (await alone.call("GET", "health"))["workers"]["idle"] == 1


async def _running(queue: QueueClient, wanted: int) -> bool:
    return bool((await queue.call("GET", "health"))["workers"]["running"] == wanted)


async def test_an_unknown_endpoint_is_404(queue: QueueClient) -> None:
    answer = await QueueClient(queue.proxy, endpoint="nowhere").call("GET", "health")
    assert answer.status == 404
    served = queue.endpoint
    assert answer.body == {"error": f"Unknown endpoint 'nowhere'. This proxy serves: {served}."}
