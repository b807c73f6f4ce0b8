"""vLLM's scheduler with a minimum step time, as of a model a thousand times larger on a GPU.

Without it the demo model is faster than any API layer, which then combines several tokens into one
event. The number of tokens per event depends on the load of the machine, so that runs could not be
compared.
"""

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

STEP_SECONDS = 0.02


class PacedScheduler(AsyncScheduler):
    """Sleeps before every step; a value for vLLM's `--scheduler-cls`."""

    def schedule(self, *args: Any, **more: Any) -> Any:
        time.sleep(STEP_SECONDS)
        return super().schedule(*args, **more)
