"""`make up`: the set-up, then `vllm-serverless up` in this process's place, so that signals reach it directly."""

import os
import sys

from environment.prepare import prepare


def main() -> None:
    """Install what running needs; with --upstream, before any `--`, vLLM is not needed."""
    arguments = sys.argv[1:]
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    has_upstream = any(argument == "--upstream" or argument.startswith("--upstream=") for argument in ours)
    python = prepare(vllm=not has_upstream, tests=False)
    os.execv(python, [python, "-m", "proxy.cli", "up", *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
