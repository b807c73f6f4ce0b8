"""Workers with real vLLM on the demo model."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from harness.proxy.server import Proxy
from harness.worker.process import WorkerProcess, worker

TESTS = Path(__file__).parents[2]
START_SECONDS = 400  # two of them load at once, on two cores that may have other work


def real_worker(proxy: Proxy, records: Path) -> AbstractAsyncContextManager[WorkerProcess]:
    """A worker with vLLM; what its engine sends is recorded in this folder."""
    return worker(
        *(proxy, "--middleware", "harness.worker.app_recorder.Recorder"),
        engine="vllm", model="demo", log_level="info", heartbeat_seconds=5,
        environment={"PYTHONPATH": str(TESTS), "RECORD_FOLDER": str(records)},
    )  # fmt: skip


def ask(text: str = "What is this?", **more: Any) -> dict[str, Any]:
    """A chat request for the demo model."""
    return {"model": "demo", "messages": [{"role": "user", "content": text}]} | more
