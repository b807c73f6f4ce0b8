"""How a worker is started: `python -m worker_vllm`, told everything by its environment but vLLM's own flags."""

import sys
from typing import Any

from proxy.settings import worker_environment as inherited

DEMO = "demo"


def environment(**flags: Any) -> dict[str, str]:
    """Return the worker's environment; a flag that was not given leaves its `WORKER_*` variable as it is."""
    given = {
        f"WORKER_{name.upper()}": str(value) for name, value in flags.items() if value is not None
    }
    return inherited(given)


def arguments(vllm_flags: list[str]) -> list[str]:
    """The worker's command line."""
    return [sys.executable, "-m", "worker_vllm", *vllm_flags]
