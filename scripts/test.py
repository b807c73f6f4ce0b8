"""`make test`: install the test tools, then run pytest, in parallel unless tests are selected.

`--fast` omits real vLLM, the clients that need their own environments, and tests marked `slow`. All
other arguments are passed to pytest.
"""

import argparse
import os
from collections.abc import Sequence

from environment.prepare import prepare
from environment.table import ROOT

# Most tests wait for another process most of the time, so more processes than cores are faster.
PROCESSES = "4"
# Replaces the expression of pyproject.toml.
FAST = ("-m", "not torture and not slow")


def main() -> None:
    """Install what is missing, and replace this process by pytest."""
    parser = argparse.ArgumentParser(prog="test", add_help=False, allow_abbrev=False)
    parser.add_argument("--fast", action="store_true")
    options, given = parser.parse_known_args()
    python = prepare(vllm=not options.fast, tests=True, beside=not options.fast)
    if options.fast:
        # The tests read this variable.
        os.environ["VLLM_SERVERLESS_FAST"] = "1"
    # The tests start hundreds of Python processes; each would compile its imports without a cache.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.chdir(ROOT)
    arguments = [python, "-m", "pytest", *_parallel(given), *(FAST if options.fast else ()), *given]
    os.execv(python, arguments)  # noqa: S606 - without a shell


def _parallel(given: Sequence[str]) -> list[str]:
    """Return the arguments for a parallel run; empty if `given` has paths, `-n` or `--pdb`."""
    selects = any((ROOT / argument.partition("::")[0]).exists() for argument in given)
    chooses = any(argument.startswith(("-n", "--numprocesses", "--pdb")) for argument in given)
    return [] if selects or chooses else ["-n", PROCESSES]


if __name__ == "__main__":
    main()
