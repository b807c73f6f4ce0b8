"""`make check`: run the checks of format, lint, types and import contracts; print all verdicts."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from environment.prepare import prepare
from environment.table import ROOT


def commands(bin_: Path, *, fix: bool) -> dict[str, list[str]]:
    """Return the command of each check, by its name. `bin_` is the folder of the tools."""
    ruff = str(bin_ / "ruff")
    return {
        "format": [ruff, "format", *([] if fix else ["--check"]), "."],
        "lint": [ruff, "check", *(["--fix"] if fix else []), "."],
        "types": [str(bin_ / "mypy"), "--strict", "proxy", "worker_vllm", "scripts"],
        "imports": [str(bin_ / "lint-imports"), "--no-logo"],
    }


def main() -> None:
    """Run all checks; exit with status 1 if one failed."""
    parser = argparse.ArgumentParser(prog="check", description=__doc__)
    parser.add_argument(
        "--fix", action="store_true", help="format the code, and apply the fixes of ruff"
    )
    fix = parser.parse_args().fix
    python = prepare(vllm=False, tests=True)
    os.chdir(ROOT)
    verdicts = []
    for name, command in commands(Path(python).parent, fix=fix).items():
        started = time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        has_passed = ended.returncode == 0
        if not has_passed:
            print(ended.stdout + ended.stderr)
        verdicts.append((name, has_passed, time.monotonic() - started))
    for name, has_passed, seconds in verdicts:
        print(f"{name + ' ':.<12} {'passed' if has_passed else 'FAILED'} {seconds:.1f} s")
    sys.exit(not all(has_passed for _, has_passed, _ in verdicts))


if __name__ == "__main__":
    main()
