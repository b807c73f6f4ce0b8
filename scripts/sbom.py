"""`make sbom`: write a CycloneDX bill of materials of a base install to dist/sbom.json or ARGS.

Its source is the lock of that install.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from environment.prepare import prepare_one
from environment.table import AUDIT, ROOT


def main() -> None:
    """Write the bill of materials. The same lock results in the same bytes."""
    parser = argparse.ArgumentParser(prog="sbom", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=ROOT / "dist" / "sbom.json")
    parser.add_argument(
        "--tool", metavar="COMMAND", help="cyclonedx-py to run (default: it is installed)"
    )
    options = parser.parse_args()
    tool = options.tool or str(Path(prepare_one(AUDIT)).with_name("cyclonedx-py"))
    options.path.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--pyproject", "pyproject.toml", "--output-reproducible", "--output-format", "JSON"]
    output = ["--output-file", str(options.path.absolute())]
    command = [tool, "requirements", *flags, *output, "requirements/base.txt"]
    # The tool warns that a lock has no dependency graph.
    env = {**os.environ, "PYTHONWARNINGS": "ignore::UserWarning"}
    status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
    if not status:
        print(f"sbom: {options.path}")
    sys.exit(status)


if __name__ == "__main__":
    main()
