"""System tools that only some tests need, from PATH or installed with apt as root.

Without a tool, the tests that need it are skipped with the reason.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .console import Stages

# The timeout of each of two commands: an unreachable package source must not block the tests.
APT_TIMEOUT_SECONDS = 180
# This folder exists if systemd manages the machine.
BOOTED = Path("/run/systemd/system")
TITLE = "for tests: system tools"


@dataclass(frozen=True, slots=True)
class Tool:
    """A command and its Debian package."""

    command: str
    package: str


TOOLS = (
    Tool("nginx", "nginx-light"),
    Tool("haproxy", "haproxy"),
    Tool("ip", "iproute2"),
    Tool("nft", "nftables"),
)


def missing(environ: Mapping[str, str]) -> list[Tool]:
    """Return the tools that are not in PATH."""
    path = environ.get("PATH", os.defpath)
    return [tool for tool in TOOLS if shutil.which(tool.command, path=path) is None]


def wanted(environ: Mapping[str, str], *, uid: int, booted: Path = BOOTED) -> list[Tool]:
    """Return the missing tools if this user can install them, else an empty list.

    On a machine that systemd manages, nothing is installed, because a package's service would start
    at the next boot.
    """
    if uid != 0 or booted.exists():
        return []
    has_apt = shutil.which("apt-get", path=environ.get("PATH", os.defpath)) is not None
    return missing(environ) if has_apt else []


def install(tools: Sequence[Tool], environ: Mapping[str, str], stages: Stages) -> None:
    """Install tools as one stage, without questions and without starting services.

    A tool that is not available is reported, and is not an error.
    """
    # In runlevel 1, the scripts of packages start no services.
    env = {**environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    options = ["DPkg::Lock::Timeout=30", "Acquire::Retries=1"]
    options += ["Acquire::http::Timeout=15", "Acquire::https::Timeout=15"]
    apt = ["timeout", "--kill-after=10", str(APT_TIMEOUT_SECONDS), "apt-get", "--quiet"]
    for option in options:
        apt += ["-o", option]
    with stages.stage(TITLE):
        stages.probe([*apt, "update"], env)
        install_flags = ["--yes", "--no-install-recommends"]
        stages.probe([*apt, "install", *install_flags, *_packages(tools)], env)


def _packages(tools: Sequence[Tool]) -> list[str]:
    return sorted({tool.package for tool in tools})
