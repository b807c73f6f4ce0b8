"""The command and the environment of a worker process: `python -m worker_vllm`."""

import sys
from typing import Any

from proxy.cli.worker_flags import WORKER_FLAGS
from proxy.settings import worker_environment

DEMO = "demo"


def environment(**flags: Any) -> dict[str, str]:
    """Return the environment of a worker process: this one without the proxy's secrets, updated.

    A flag that is not None sets its variable; for None, the variable stays as it is.
    """
    variables = {flag.name: flag.variable for flag in WORKER_FLAGS}
    given = {
        variables.get(name, f"WORKER_{name.upper()}"): str(value)
        for name, value in flags.items()
        if value is not None
    }
    return worker_environment(given)


def arguments(vllm_flags: list[str]) -> list[str]:
    """Return the command line of a worker. Flags of vLLM are its only arguments."""
    return [sys.executable, "-m", "worker_vllm", *vllm_flags]
