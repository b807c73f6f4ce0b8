"""Workers that run vLLM with the demo model."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from harness.proxy.server import Proxy
from harness.worker.process import WorkerProcess, worker

TESTS = Path(__file__).parents[2]
# Two workers load at the same time, on two cores that may have other work.
START_SECONDS = 400


def real_worker(proxy: Proxy, records: Path) -> AbstractAsyncContextManager[WorkerProcess]:
    """Run a worker with vLLM; the output of its engine is recorded in `records`."""
    return worker(
        *(proxy, "--middleware", "harness.worker.app_recorder.Recorder"),
        engine="vllm", model="demo", log_level="info", heartbeat_seconds=5,
        environment={"PYTHONPATH": str(TESTS), "RECORD_FOLDER": str(records)},
    )  # fmt: skip


def ask(text: str = "What is this?", **more: Any) -> dict[str, Any]:
    """Return a chat request for the demo model."""
    return {"model": "demo", "messages": [{"role": "user", "content": text}]} | more
