"""`make test`: the set-up with the test tools, then pytest."""

import os
import sys

from environment.prepare import prepare
from environment.table import ROOT


def main() -> None:
    """Run pytest with the arguments given."""
    python = prepare(vllm=True, tests=True, beside=True)
    os.chdir(ROOT)
    os.execv(python, [python, "-m", "pytest", *sys.argv[1:]])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
