"""vLLM's own scheduler at the pace of a GPU: a step takes as long as that of a model a thousand times the demo's size.

Without it the demo model is faster than any API layer, which then puts several tokens into one event, the more so the
busier the machine is, and no two runs compare.
"""

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

STEP_SECONDS = 0.02


class PacedScheduler(AsyncScheduler):
    """For vLLM's `--scheduler-cls`."""

    def schedule(self, *args: Any, **more: Any) -> Any:
        time.sleep(STEP_SECONDS)
        return super().schedule(*args, **more)
