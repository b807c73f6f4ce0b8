"""System tools that only some tests need: from PATH, else apt as root, else those tests are not run and say so."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .console import Stages

APT_SECONDS = (
    180  # for each of two commands; a package source that does not answer must not hold the tests
)
BOOTED = Path("/run/systemd/system")  # there where systemd runs the machine
TITLE = "for tests: system tools"


@dataclass(frozen=True, slots=True)
class Tool:
    """A command and the Debian package that has it."""

    command: str
    package: str


TOOLS = (
    Tool("nginx", "nginx-light"),
    Tool("haproxy", "haproxy"),
    Tool("ip", "iproute2"),
    Tool("nft", "nftables"),
)


def missing(environ: Mapping[str, str]) -> list[Tool]:
    """The tools that no folder of PATH has."""
    path = environ.get("PATH", os.defpath)
    return [tool for tool in TOOLS if shutil.which(tool.command, path=path) is None]


def wanted(environ: Mapping[str, str], *, uid: int, booted: Path = BOOTED) -> list[Tool]:
    """The missing tools, where this user may install them.

    On a machine that systemd runs, a package's service would come up at its next start: that is its owner's to want.
    """
    is_ours = (
        uid == 0
        and shutil.which("apt-get", path=environ.get("PATH", os.defpath))
        and not booted.exists()
    )
    return missing(environ) if is_ours else []


def install(tools: Sequence[Tool], environ: Mapping[str, str], stages: Stages) -> None:
    """Install tools as one stage. No question is asked and no service started; what cannot be had is no failure."""
    # In runlevel 1 a package's own script starts nothing.
    env = {**environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = [
        "timeout",
        "--kill-after=10",
        str(APT_SECONDS),
        "apt-get",
        "--quiet",
        "-o",
        "DPkg::Lock::Timeout=30",
    ]
    patience = [
        "-o",
        "Acquire::Retries=1",
        "-o",
        "Acquire::http::Timeout=15",
        "-o",
        "Acquire::https::Timeout=15",
    ]
    with stages.stage(TITLE):
        stages.ask([*apt, *patience, "update"], env)
        stages.ask(
            [*apt, *patience, "install", "--yes", "--no-install-recommends", *_packages(tools)], env
        )


def _packages(tools: Sequence[Tool]) -> list[str]:
    return sorted({tool.package for tool in tools})
