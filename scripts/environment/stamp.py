"""The stamp of an environment: a file that describes its content, to skip an installation later."""

import hashlib
import json
import platform
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from .table import Environment

NAME = "vllm-serverless.json"


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of one environment. `is_whole` is False while an installation is not complete."""

    is_whole: bool
    # The checkout: a copy of it must not run the code of the original.
    root: str
    python: str
    build: str
    # The digest of each lock at its installation.
    locks: dict[str, str]


def read(place: Path) -> Stamp | None:
    """Return the stamp of an environment, or None if it has no valid one."""
    try:
        return Stamp(**json.loads((place / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write(place: Path, stamp: Stamp) -> None:
    """Replace the stamp atomically."""
    partial = place / f"{NAME}.partial"
    partial.write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")
    partial.replace(place / NAME)


def wanted(root: Path, row: Environment) -> Stamp:
    """Return the stamp of an environment that is up to date."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    parts = {name: project[name] for name in ("build-system", "project")} if row.has_project else {}
    described = json.dumps(parts, sort_keys=True).encode()
    return Stamp(
        is_whole=True,
        root=str(root),
        python=f"{sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}",
        build=str(row.build),
        locks={lock: _digest(described, (root / lock).read_bytes()) for lock in row.locks},
    )


def is_usable(proof: Path, found: Stamp | None, want: Stamp) -> bool:
    """Return True if packages can be added to an environment, False if it must be recreated.

    An environment without a stamp was created by hand, and is kept.
    """
    if not proof.exists():
        return False
    if found is None:
        return True
    return found.is_whole and found.root == want.root and found.python == want.python


def is_current(found: Stamp | None, want: Stamp) -> bool:
    """Return True if all wanted locks are installed. Additional ones (test tools) are accepted."""
    if found is None or not found.is_whole:
        return False
    same = (found.root, found.python, found.build) == (want.root, want.python, want.build)
    return same and want.locks.items() <= found.locks.items()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
