"""`make check`: format, lint, types and import contracts; all run, each with its verdict. --fix formats and mends."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from environment.prepare import prepare
from environment.table import ROOT


def commands(bin_: Path, *, fix: bool) -> dict[str, list[str]]:
    """Each check's name and command."""
    ruff = str(bin_ / "ruff")
    return {
        "format": [ruff, "format", *([] if fix else ["--check"]), "."],
        "lint": [ruff, "check", *(["--fix"] if fix else []), "."],
        "types": [str(bin_ / "mypy"), "--strict", "proxy", "worker_vllm", "scripts"],
        "imports": [str(bin_ / "lint-imports"), "--no-logo"],
    }


def main() -> None:
    """Run every check and exit non-zero if one failed."""
    parser = argparse.ArgumentParser(prog="check", description=__doc__)
    parser.add_argument(
        "--fix", action="store_true", help="format the code and mend what ruff can mend"
    )
    fix = parser.parse_args().fix
    python = prepare(vllm=False, tests=True)
    os.chdir(ROOT)
    verdicts = []
    for name, command in commands(Path(python).parent, fix=fix).items():
        begun = time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        is_good = ended.returncode == 0
        if not is_good:
            print(ended.stdout + ended.stderr)
        verdicts.append((name, is_good, time.monotonic() - begun))
    for name, is_good, seconds in verdicts:
        print(f"{name + ' ':.<12} {'passed' if is_good else 'FAILED'} {seconds:.1f} s")
    sys.exit(not all(is_good for _, is_good, _ in verdicts))


if __name__ == "__main__":
    main()
