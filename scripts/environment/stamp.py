"""What an environment holds, written into it when an install is whole: a second start compares and is done."""

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
    """The state of one environment. An install that did not end leaves `is_whole` false."""

    is_whole: bool
    root: str  # a copied checkout must not run the original's code
    python: str
    build: str
    locks: dict[str, str]  # each lock with the digest of what was installed from it


def read(place: Path) -> Stamp | None:
    """The stamp of an environment; None where nobody wrote one."""
    try:
        return Stamp(**json.loads((place / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write(place: Path, stamp: Stamp) -> None:
    """Replace the stamp in one step."""
    partial = place / f"{NAME}.partial"
    partial.write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")
    partial.replace(place / NAME)


def wanted(root: Path, row: Environment) -> Stamp:
    """The stamp an environment has when it is up to date."""
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
    """Whether to install into what is there; else it is made anew. One without a stamp was made by hand: kept."""
    if not proof.exists():
        return False
    return found is None or (
        found.is_whole and found.root == want.root and found.python == want.python
    )


def is_current(found: Stamp | None, want: Stamp) -> bool:
    """Whether everything wanted is installed; test tools nobody asked for do no harm."""
    if found is None or not found.is_whole:
        return False
    same = (found.root, found.python, found.build) == (want.root, want.python, want.build)
    return same and want.locks.items() <= found.locks.items()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
