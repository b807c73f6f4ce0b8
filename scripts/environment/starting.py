"""`make up`: refuse what cannot run here, install what is missing, then go on as `vllm-serverless up`."""

import os
import sys

from . import suitability
from .prepare import prepare


def main() -> None:
    """Start with the arguments given. The same process goes on, so that signals reach it directly."""
    arguments = sys.argv[1:]
    asked = suitability.asked(arguments, os.environ)
    if in_use := suitability.port_in_use(asked.host, asked.port):
        suitability.end(in_use)
    python = prepare(vllm=asked.needs_vllm, tests=False, workers=asked.workers)
    os.execv(python, [python, "-m", "proxy.cli", "up", *arguments])  # noqa: S606 - no shell is wanted
