"""`make torture`: the tests marked `torture`; ONLY=name picks some, MINUTES=n says how long each may go on."""

import argparse
import os

from environment.prepare import prepare
from environment.table import ROOT


def main() -> None:
    """Run the torture tests; the tests themselves read MINUTES."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument(
        "--only", default=os.environ.get("ONLY", ""), help="part of a test's name (ONLY)"
    )
    parser.add_argument(
        "--minutes", default=os.environ.get("MINUTES", ""), help="how long each goes on (MINUTES)"
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
    os.execv(python, [python, "-m", "pytest", "-m", "torture", *only, *rest])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
