"""Python packages: the virtual environment of a row, and the packages that uv installs into it."""

import re
import subprocess
import sys
from pathlib import Path

from .console import Stages
from .hardware import Build
from .table import ROOT, Environment
from .uv import Uv

HINT = (
    "Run the command again; finished downloads are kept. If a package cannot be found, "
    "`python3 -m pip config list` shows the package index in use."
)


def make(place: Path, uv: Uv, stages: Stages) -> None:
    """Create an empty virtual environment at `place` with the Python of this process."""
    stages.run(
        [uv.command, "venv", "--quiet", "--python", sys.executable, str(place)], uv.env(), HINT
    )


def fill(row: Environment, place: Path, uv: Uv, stages: Stages) -> None:
    """Install the packages of a row.

    For the environments of the tests, a dry run first raises UnavailableError if a package is
    missing.
    """
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
        stages.probe([*packages, "--dry-run", "--quiet"], env)
    stages.run(packages, env, HINT)
    if row.has_project:
        stages.run([*install, "--no-deps", "--editable", str(ROOT)], env, HINT)


def _arguments(row: Environment, look_up: list[str], env: dict[str, str]) -> list[str]:
    """Return the arguments of `uv pip install`.

    Locks list every package, so that nothing is resolved, and hashes are verified.
    """
    if row.build is Build.GPU:
        # Not locked: PyTorch's index selects the CUDA build of torch that fits the driver. If that
        # index cannot be reached, the build on PyPI is used.
        extras = ["--extra", "gpu"]
        if "requirements/test.txt" in row.locks:
            extras += ["--extra", "test"]
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
    """Return the arguments for torch's CPU build, which depend on whether pip's index has it."""
    pin = re.search(r"^torch==\S+\+cpu", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if pin is None:
        sys.exit(f"{lock} does not pin the CPU build of torch. Run `make lock`.")
    return [] if _is_found(pin[0], look_up, env) else ["--torch-backend", "cpu"]


def _is_found(requirement: str, look_up: list[str], env: dict[str, str]) -> bool:
    # An index that does not answer cannot be used for the installation either, so do not retry.
    env = {**env, "UV_HTTP_RETRIES": "0"}
    ended = subprocess.run(
        look_up, env=env, input=requirement.encode(), capture_output=True, check=False
    )
    return ended.returncode == 0
