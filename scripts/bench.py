"""`make bench` and `make bench-quick` (`--quick`): install the peers, and compare with them.

ONLY=row selects rows, separated by spaces or commas. All other arguments are passed to
`benchmarks/bench.py`.
"""

import argparse
import os

from environment.prepare import prepare, prepare_beside
from environment.table import LITELLM, ROOT, SDK, VLLM_ROUTER


def main() -> None:
    """Install what is missing, and replace this process by the benchmark."""
    parser = argparse.ArgumentParser(prog="bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=os.environ.get("ONLY", ""))
    options, given = parser.parse_known_args()
    # With the test tools, vLLM is optional.
    python = prepare(vllm=not options.quick, tests=True)
    prepare_beside([VLLM_ROUTER] if options.quick else [VLLM_ROUTER, LITELLM, SDK])
    os.chdir(ROOT)
    chosen = ["--quick"] if options.quick else options.only.replace(",", " ").split()
    arguments = [python, "benchmarks/bench.py", *chosen, *given]
    os.execv(python, arguments)  # noqa: S606 - without a shell


if __name__ == "__main__":
    main()
