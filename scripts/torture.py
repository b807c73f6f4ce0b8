"""`make torture`: run the long tests. ONLY=name selects some; MINUTES=n is the time of each."""

import argparse
import os

from environment.prepare import prepare
from environment.table import ROOT


def main() -> None:
    """Install what is missing, and replace this process by pytest. The tests read MINUTES."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument(
        "--only", default=os.environ.get("ONLY", ""), help="expression for test names (ONLY)"
    )
    parser.add_argument(
        "--minutes", default=os.environ.get("MINUTES", ""), help="duration of each test (MINUTES)"
    )
    options, rest = parser.parse_known_args()
    if options.minutes:
        try:
            float(options.minutes)
        except ValueError:
            parser.error(f"MINUTES must be a number, not {options.minutes!r}")
        os.environ["MINUTES"] = options.minutes
    only = ["-k", options.only] if options.only else []
    python = prepare(vllm=True, tests=True, beside=True)
    os.chdir(ROOT)
    arguments = [python, "-m", "pytest", "-m", "torture", *only, *rest]
    os.execv(python, arguments)  # noqa: S606 - without a shell


if __name__ == "__main__":
    main()
