"""What an environment holds, written into it when an install is whole: a second start compares and is done."""

import hashlib
import json
import os
import platform
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from .hardware import Build

NAME = "vllm-serverless.json"


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of one environment. An install that did not end leaves `is_whole` false."""

    is_whole: bool
    root: str  # a copied checkout must not run the original's code
    python: str
    build: str
    runtime: str
    tests: str = ""


def read(environment: Path) -> Stamp | None:
    """The stamp of an environment; None where nobody wrote one."""
    try:
        return Stamp(**json.loads((environment / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write(environment: Path, stamp: Stamp) -> None:
    """Replace the stamp in one step."""
    partial = environment / f"{NAME}.partial"
    partial.write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")
    partial.replace(environment / NAME)


def wanted(root: Path, build: Build, *, tests: bool) -> Stamp:
    """The stamp an environment has when it is up to date."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    parts = {name: project[name] for name in ("build-system", "project")}
    described = json.dumps(parts, sort_keys=True).encode()
    names = {Build.CPU: "cpu.txt", Build.GPU: "base.txt", Build.NONE: "base.txt"}
    requirements = root / "requirements"
    return Stamp(
        is_whole=True,
        root=str(root),
        python=f"{sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}",
        build=str(build),
        runtime=_digest(described, (requirements / names[build]).read_bytes()),
        tests=_digest(described, (requirements / "test.txt").read_bytes()) if tests else "",
    )


def is_usable(environment: Path, found: Stamp | None, want: Stamp) -> bool:
    """Whether to install into what is there; else it is made anew. One without a stamp was made by hand: kept."""
    if not os.access(environment / "bin" / "python", os.X_OK):
        return False
    return found is None or (found.is_whole and found.root == want.root and found.python == want.python)


def is_current(found: Stamp | None, want: Stamp) -> bool:
    """Whether everything wanted is installed; test tools nobody asked for do no harm."""
    if found is None or not found.is_whole:
        return False
    same = (found.root, found.python, found.build, found.runtime) == (want.root, want.python, want.build, want.runtime)
    return same and (not want.tests or found.tests == want.tests)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
