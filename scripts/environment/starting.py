"""`make up`: check the machine, install what is missing, then run `vllm-serverless up`."""

import os
import sys

from . import suitability
from .prepare import prepare


def main() -> None:
    """Start with the command-line arguments, in the same process, so that it receives signals."""
    arguments = sys.argv[1:]
    request = suitability.requested(arguments, os.environ)
    if in_use := suitability.port_in_use(request.host, request.port):
        suitability.end(in_use)
    python = prepare(vllm=request.needs_vllm, tests=False, workers=request.workers)
    os.execv(python, [python, "-m", "proxy.cli", "up", *arguments])  # noqa: S606 - without a shell
