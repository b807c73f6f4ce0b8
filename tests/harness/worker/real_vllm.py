"""Workers that run vLLM with the demo model."""

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from harness.proxy.server import Proxy
from harness.worker.process import WorkerProcess, worker

TESTS = Path(__file__).parents[2]
# Two workers load at the same time, on two cores that may have other work.
START_SECONDS = 400


def real_worker(
    proxy: Proxy, records: Path, **settings: Any
) -> AbstractAsyncContextManager[WorkerProcess]:
    """Run a worker with vLLM; the output of its engine is recorded in `records`."""
    return worker(
        *(proxy, "--middleware", "harness.worker.app_recorder.Recorder"),
        engine="vllm", model="demo", log_level="info", heartbeat_seconds=5,
        environment={"PYTHONPATH": str(TESTS), "RECORD_FOLDER": str(records)}, **settings,
    )  # fmt: skip


def engine_of(pid: int) -> int:
    """Return the id of vLLM's EngineCore process under the worker `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    named = {int(child): Path(f"/proc/{child}/comm").read_text() for child in children}
    return next(child for child, name in named.items() if "VLLM" in name)


def cpus_of(pid: int) -> set[int]:
    """Return the CPUs that the threads of a process may use."""
    tasks = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return set().union(*(os.sched_getaffinity(task) for task in tasks))


def ask(text: str = "What is this?", **more: Any) -> dict[str, Any]:
    """Return a chat request for the demo model."""
    return {"model": "demo", "messages": [{"role": "user", "content": text}]} | more
