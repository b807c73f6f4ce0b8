"""Python packages: the virtual environment of a row, and what uv is told to install into it."""

import re
import subprocess
import sys
from pathlib import Path

from .console import Stages
from .hardware import Build
from .table import ROOT, Environment
from .uv import Uv

HINT = (
    "Run the command again: what was downloaded is kept. If a package cannot be found, "
    "`python3 -m pip config list` shows where this set-up looks."
)


def make(place: Path, uv: Uv, stages: Stages) -> None:
    """An empty virtual environment with the Python that runs this."""
    stages.run(
        [uv.command, "venv", "--quiet", "--python", sys.executable, str(place)], uv.env(), HINT
    )


def fill(row: Environment, place: Path, uv: Uv, stages: Stages) -> None:
    """Install the packages of a row. One beside the first is tried dry: what is missing there is no failure."""
    env = uv.env()
    install = [uv.command, "pip", "install", "--python", str(place / "bin" / "python")]
    look_up = [
        uv.command,
        "pip",
        "compile",
        "--quiet",
        "--no-deps",
        "--python",
        sys.executable,
        "-",
    ]
    packages = [*install, *_arguments(row, look_up, env)]
    if row.is_beside:
        stages.ask([*packages, "--dry-run", "--quiet"], env)
    stages.run(packages, env, HINT)
    if row.has_project:
        stages.run([*install, "--no-deps", "--editable", str(ROOT)], env, HINT)


def _arguments(row: Environment, look_up: list[str], env: dict[str, str]) -> list[str]:
    """The arguments of `uv pip install`. Locks name every package, so nothing is resolved; hashes are checked."""
    if row.build is Build.GPU:
        # Unlocked: the CUDA build of torch that fits the driver is PyTorch's to know; where its index cannot be
        # reached, the build on PyPI is taken.
        extras = [
            "--extra",
            "gpu",
            *(["--extra", "test"] if "requirements/test.txt" in row.locks else []),
        ]
        backend = ["--torch-backend", "auto"]
        fits = _is_found("torch", [*look_up, *backend], env)
        return ["--requirements", str(ROOT / "pyproject.toml"), *extras, *(backend if fits else [])]
    locked = ["--no-deps", "--only-binary", ":all:"]
    for lock in row.locks:
        locked += ["--requirements", str(ROOT / lock)]
    if row.build is Build.NONE:
        return [*locked, "--require-hashes"]
    return [*locked, *_torch_backend(ROOT / "requirements" / "cpu.txt", look_up, env)]


def _torch_backend(lock: Path, look_up: list[str], env: dict[str, str]) -> list[str]:
    """Say where torch's CPU build comes from: where pip looks, if it is there, else PyTorch's own index."""
    pin = re.search(r"^torch==\S+\+cpu", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        sys.exit(f"{lock}: no line pins torch.")
    return [] if _is_found(pin[0], look_up, env) else ["--torch-backend", "cpu"]


def _is_found(requirement: str, look_up: list[str], env: dict[str, str]) -> bool:
    env = {
        **env,
        "UV_HTTP_RETRIES": "0",
    }  # a place that does not answer is no place to install from
    ended = subprocess.run(
        look_up, env=env, input=requirement.encode(), capture_output=True, check=False
    )
    return ended.returncode == 0
