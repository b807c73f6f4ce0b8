"""`make test`: the set-up with the test tools, then pytest, in parallel unless a part is named.

`--fast` leaves out real vLLM and the clients that need environments of their own. Everything else goes to pytest.
"""

import argparse
import os
from collections.abc import Sequence

from environment.prepare import prepare
from environment.table import ROOT

# Most tests wait for another process most of the time, so more processes than cores are faster.
PROCESSES = "4"


def main() -> None:
    """Run pytest with the arguments given."""
    parser = argparse.ArgumentParser(prog="test", add_help=False, allow_abbrev=False)
    parser.add_argument("--fast", action="store_true")
    options, given = parser.parse_known_args()
    python = prepare(vllm=not options.fast, tests=True, beside=not options.fast)
    if options.fast:
        os.environ["VLLM_SERVERLESS_FAST"] = "1"  # the tests read it
    # The tests start hundreds of Python processes, and each would compile what it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.chdir(ROOT)
    os.execv(python, [python, "-m", "pytest", *_parallel(given), *given])  # noqa: S606 - no shell is wanted


def _parallel(given: Sequence[str]) -> list[str]:
    """Return the arguments that make the run parallel: none where a part is named, or `-n` is given."""
    names_a_part = any((ROOT / argument.partition("::")[0]).exists() for argument in given)
    chooses = any(argument.startswith(("-n", "--numprocesses", "--pdb")) for argument in given)
    return [] if names_a_part or chooses else ["-n", PROCESSES]


if __name__ == "__main__":
    main()
