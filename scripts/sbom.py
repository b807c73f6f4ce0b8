"""`make sbom`: a CycloneDX list of everything a base install holds, from its lock: dist/sbom.json, or ARGS=PATH."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from environment.prepare import prepare_one
from environment.table import AUDIT, ROOT


def main() -> None:
    """Write the list; the same lock gives the same bytes."""
    parser = argparse.ArgumentParser(prog="sbom", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=ROOT / "dist" / "sbom.json")
    parser.add_argument(
        "--tool", metavar="COMMAND", help="the cyclonedx-py to run, instead of installing it"
    )
    told = parser.parse_args()
    tool = told.tool or str(Path(prepare_one(AUDIT)).with_name("cyclonedx-py"))
    told.path.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--pyproject", "pyproject.toml", "--output-reproducible", "--output-format", "JSON"]
    command = [
        tool,
        "requirements",
        *flags,
        "--output-file",
        str(told.path.absolute()),
        "requirements/base.txt",
    ]
    env = {
        **os.environ,
        "PYTHONWARNINGS": "ignore::UserWarning",
    }  # a lock is a list: which needs which it does not say
    status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if not status:
        print(f"sbom: {told.path}")
    sys.exit(status)


if __name__ == "__main__":
    main()
