"""`make up`: check the machine, install what is missing, then run `vllm-serverless up`."""

import os
import sys
from collections.abc import Sequence

from . import suitability
from .prepare import prepare

# 128 + SIGINT: the status that shells report for a command that Ctrl-C has ended.
EX_INTERRUPTED = 130


def main() -> None:
    """Start with the command-line arguments, in the same process, so that it receives signals."""
    try:
        _start(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(EX_INTERRUPTED)


def _start(arguments: Sequence[str]) -> None:
    request = suitability.requested(arguments, os.environ)
    if in_use := suitability.port_in_use(request.host, request.port):
        suitability.end(in_use)
    python = prepare(vllm=request.needs_vllm, tests=False, workers=request.workers)
    os.environ["VLLM_SERVERLESS_COMMAND"] = "make up"
    os.execv(python, [python, "-m", "proxy.cli", "up", *arguments])  # noqa: S606 - without a shell
