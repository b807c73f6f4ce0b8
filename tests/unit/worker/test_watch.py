import asyncio

from proxy.wire.frames import Chunk, Pause
from tests.unit.worker.support import DEADLINE, AppEngine, app_of, chat, fake_proxy, working
from worker_vllm.engine.scripted import ScriptedEngine
from worker_vllm.engine.watchdog import watch


async def test_a_dead_engine_is_detected() -> None:
    async with (
        fake_proxy() as proxy,
        working(ScriptedEngine(stage=lambda _: None), proxy.url) as worker,
    ):
        async with asyncio.timeout(DEADLINE):
            gone = await watch(AppEngine(app_of(), dead=True), worker.runtime, 60)

    assert gone.code == "engine_dead"


async def test_an_engine_without_progress_on_a_job_is_detected() -> None:
    engine = ScriptedEngine(stage=lambda _: None)
    async with fake_proxy() as proxy, working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        await line.send_job("j", chat(fault="hang:1"))
        await line.wait_for(Chunk, "j")
        async with asyncio.timeout(DEADLINE):
            gone = await watch(engine, worker.runtime, 0.3)

    assert gone.code == "engine_hung"


async def test_an_idle_or_paused_worker_does_not_hang() -> None:
    engine = ScriptedEngine(stage=lambda _: None)
    async with fake_proxy() as proxy, working(engine, proxy.url) as worker:
        line = await proxy.next_line()
        watching = asyncio.create_task(watch(engine, worker.runtime, 0.3))
        await line.send_job("j", chat(max_tokens=1_000_000, seed=1000))
        await line.wait_for(Chunk, "j")
        await line.send(Pause("j", 1))
        done, _ = await asyncio.wait({watching}, timeout=1)
        watching.cancel()

    assert not done
